//! Either direction of the steering connection: what the lines are does not depend on how they come
//! in, what is read is written back as it was, and what does not fit leaves the old one in force.

use steer::{Delta, Lines, NodeKey, Order, PeerKey, Revision, Said, Snapshot};
use wire::key::Key;

/// Longest line of either direction here, so that short inputs exceed it.
const LINE_BYTES_MAX: usize = 4096;

/// Control's side of a connection, cut every `data[0]` bytes.
pub(super) fn orders(data: &[u8]) {
    for line in lines(data) {
        let Ok(Some(order)) = Order::read(&line) else { continue };
        let text = order.to_line();
        let again = Order::read(text.as_bytes()).expect("ours").expect("known");
        assert_eq!(again.to_line(), text);
        match order {
            Order::Whole(whole) => take(&whole),
            Order::Delta(delta) => follow(&delta),
            Order::Current { .. } | Order::Goodbye { .. } => {}
        }
    }
}

/// A dataplane's side of a connection, cut every `data[0]` bytes.
pub(super) fn said(data: &[u8]) {
    for line in lines(data) {
        if let Ok(Some(said)) = Said::read(&line) {
            assert_eq!(Said::read(said.to_line().as_bytes()), Ok(Some(said)));
        }
    }
}

fn lines(data: &[u8]) -> Vec<Vec<u8>> {
    let Some((&cut, stream)) = data.split_first() else { return Vec::new() };
    let found = cut_up(stream, usize::from(cut).max(1));
    assert_eq!(found, cut_up(stream, stream.len().max(1)));
    found
}

/// The lines of `stream` that comes in pieces of `cut` bytes, up to one that is too long.
fn cut_up(stream: &[u8], cut: usize) -> Vec<Vec<u8>> {
    let mut lines = Lines::new(LINE_BYTES_MAX);
    let _ = stream.chunks(cut).try_for_each(|piece| lines.push(piece));
    assert!(lines.begun_bytes() <= LINE_BYTES_MAX);
    std::iter::from_fn(|| lines.pop()).collect()
}

/// What may replace anything is read back from its own text.
fn take(whole: &Snapshot) {
    if whole.may_replace(None).is_ok() {
        let text = whole.to_text();
        assert_eq!(Snapshot::read(text.as_bytes()).expect("checked").to_text(), text);
    }
}

fn follow(delta: &Delta) {
    let old = Snapshot {
        store: "main".to_owned(),
        revision: Revision(7),
        clients: [("laptop".to_owned(), NodeKey(Key([1; 32])))].into(),
        peers: [("a", 2), ("b", 3)]
            .map(|(name, n)| (name.to_owned(), PeerKey(Key([n; 32]))))
            .into(),
        ..Snapshot::default()
    };
    let text = old.to_text();
    if let Ok(new) = old.after(delta) {
        assert_eq!((new.check(), new.revision), (Ok(()), delta.to));
        assert!(new.revision > old.revision && delta.from == old.revision);
    }
    assert_eq!(old.to_text(), text);
}
