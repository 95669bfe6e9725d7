//! What the relay promises, by behaviour, with made-up messages. Real peers are in `tests/`.
