//! Guests of whom nobody knows yet who they are: connections that have shown no certificate or token.
//!
//! Owns their number: one more than that takes the place of whoever has been here for longest. So
//! strangers who say nothing, or read nothing, keep nobody out who has business here, which takes a
//! round trip or two. It knows nothing of TLS or HTTP. `steering` and `serve` put connections in.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Guests at a time.
pub(crate) const GUESTS_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Lobby(Mutex<Guests>);

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    /// In the order in which they came, and how each is told to go.
    here: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A guest's place, until it is dropped or given back.
#[derive(Debug)]
pub(crate) struct Seat {
    lobby: Arc<Lobby>,
    number: u64,
}

impl Lobby {
    /// Runs the `visit` of one more guest. It ends early if the place goes to another before it was
    /// given back. Tells whether another guest had to go for this one.
    pub(crate) fn take_in<V>(self: &Arc<Self>, visit: impl FnOnce(Seat) -> V) -> bool
    where
        V: Future<Output = ()> + Send + 'static,
    {
        let (go, told_to_go) = oneshot::channel();
        let (number, displaced) = {
            let mut guests = self.guests();
            let is_full = guests.here.len() >= GUESTS_MAX;
            let displaced = if is_full { guests.here.pop_first() } else { None };
            let number = guests.next;
            guests.next += 1;
            guests.here.insert(number, go);
            (number, displaced)
        };
        let visit = visit(Seat { lobby: Arc::clone(self), number });
        tokio::spawn(async move {
            tokio::select! {
                () = visit => {}
                // Not when the place was given back: then nobody can say it any more.
                Ok(()) = told_to_go => {}
            }
        });
        match displaced {
            // One whose visit has ended meanwhile does not hear it.
            Some((_, oldest)) => oldest.send(()).is_ok(),
            None => false,
        }
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Gives the place back: somebody knows now who this is.
    pub(crate) fn leave(&self) {
        self.lobby.guests().here.remove(&self.number);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    /// A guest that says nothing; what this gives fails once it is gone.
    fn silent(lobby: &Arc<Lobby>) -> (bool, oneshot::Receiver<()>) {
        let (here, gone) = oneshot::channel();
        let visit = |seat: Seat| async move {
            let _here = (here, seat);
            pending().await
        };
        (lobby.take_in(visit), gone)
    }

    #[tokio::test]
    async fn one_more_takes_the_place_of_the_oldest_and_who_is_known_needs_none() {
        let lobby = Arc::new(Lobby::default());
        let (known, is_known) = oneshot::channel();
        let (here, goes_on) = oneshot::channel::<()>();
        let visit = |seat: Seat| async move {
            seat.leave();
            // Whoever waits for this is the test.
            let _ = known.send(());
            let _ = goes_on.await;
        };
        assert!(!lobby.take_in(visit));
        is_known.await.expect("it has given its place back");
        let mut guests: Vec<_> = (0..GUESTS_MAX).map(|_| silent(&lobby)).collect();
        assert!(guests.iter().all(|(displaced, _)| !displaced), "who is known counts no more");
        let (displaced, _last) = silent(&lobby);
        assert!(displaced);
        let (_, first) = guests.remove(0);
        first.await.expect_err("the oldest is gone");
        assert!(
            guests.iter_mut().all(|(_, gone)| gone.try_recv() == Err(TryRecvError::Empty)),
            "the others stay"
        );
        assert!(!here.is_closed(), "who is known stays");
        assert_eq!(lobby.guests().here.len(), GUESTS_MAX);
    }

    #[tokio::test]
    async fn a_visit_that_ends_leaves_no_guest() {
        let lobby = Arc::new(Lobby::default());
        let (done, ended) = oneshot::channel::<()>();
        lobby.take_in(|seat| async move {
            let _seat = seat;
            drop(done);
        });
        ended.await.expect_err("it has ended");
        while !lobby.guests().here.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
