//! Guests on the way through their TLS handshakes, who are nobody yet.
//!
//! Owns their number: one more than that takes the place of whoever has been at it for longest. So
//! strangers who say nothing keep out no dataplane, which is through within a round trip or two. It
//! knows nothing of TLS. `listen` puts each connection in.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

/// Handshakes under way at a time.
pub(super) const GUESTS_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lobby(Mutex<Guests>);

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    /// In the order in which they came.
    here: BTreeMap<u64, AbortHandle>,
}

impl Lobby {
    /// Runs `handshake`, and then what it leads to, which has left the lobby. Tells whether another
    /// guest had to go for it.
    pub(super) fn take_in<S>(
        self: &Arc<Self>,
        handshake: impl Future<Output = Option<S>> + Send + 'static,
    ) -> bool
    where
        S: Future<Output = ()> + Send + 'static,
    {
        // Held until the guest is written down, or one that is through at once would leave before.
        let mut guests = self.guests();
        let oldest = match guests.here.len() >= GUESTS_MAX {
            true => guests.here.pop_first(),
            false => None,
        };
        if let Some((_, oldest)) = &oldest {
            oldest.abort();
        }
        let number = guests.next;
        guests.next += 1;
        let lobby = Arc::clone(self);
        let guest = tokio::spawn(async move {
            let session = handshake.await;
            lobby.guests().here.remove(&number);
            if let Some(session) = session {
                session.await;
            }
        });
        guests.here.insert(number, guest.abort_handle());
        oldest.is_some()
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    /// A guest that says nothing; what this gives fails once it is gone.
    fn silent(lobby: &Arc<Lobby>) -> (bool, oneshot::Receiver<()>) {
        let (here, gone) = oneshot::channel();
        let handshake = async move {
            let _here = here;
            pending::<Option<std::future::Ready<()>>>().await
        };
        (lobby.take_in(handshake), gone)
    }

    #[tokio::test]
    async fn one_more_takes_the_place_of_the_oldest_and_who_is_through_has_none() {
        let lobby = Arc::new(Lobby::default());
        let (done, session) = oneshot::channel();
        let through = async move {
            Some(async move {
                // Whoever waits for this is the test.
                let _ = done.send(());
                pending().await
            })
        };
        assert!(!lobby.take_in(through));
        session.await.expect("it is through");
        let mut guests: Vec<_> = (0..GUESTS_MAX).map(|_| silent(&lobby)).collect();
        assert!(guests.iter().all(|(displaced, _)| !displaced), "who is through counts no more");
        let (displaced, _last) = silent(&lobby);
        assert!(displaced);
        let (_, first) = guests.remove(0);
        first.await.expect_err("the oldest is gone");
        assert!(guests.iter_mut().all(|(_, gone)| {
            gone.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        }));
        assert_eq!(lobby.guests().here.len(), GUESTS_MAX);
    }
}
