-- Which record an entry of the log is of, whatever it was called; those of before do not say.
ALTER TABLE audit ADD COLUMN id TEXT;
