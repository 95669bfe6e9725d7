//! Goes by what control says: dials it, adopts its snapshots, keeps the last good one for a start without.
//!
//! A thread of its own that no relay core waits for: they hear of changes by their mailboxes. It is no
//! nicer than they are, for they can interrupt it at once, and changes are to arrive on a busy host,
//! too (p99 of 240 ms at +10 nice, 40 ms without; four hogs on two CPUs, 2026-11). While control is
//! away, slow or wrong, what was adopted last stays in force (invariants 5 and 6). `launch` begins it
//! before the first worker starts.

mod conversation;
mod dial;
mod helm;
mod state;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proto::wireguard::Session;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::conversation::Ended;
use self::dial::Dialer;
use self::helm::Helm;
use crate::certs::Resolver;
use crate::config::Checked;
use crate::config::steering::{Control, Steering};
use crate::fault::{ExitCode, OperatorFault};
use crate::front::Front;
use crate::launch::register;
use crate::offload::Shedder;

pub(crate) use self::helm::own_sessions;

/// First and longest pause before control is dialled again, jitter included.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Time for a write under way when the process stops.
const SETTLE: Duration = Duration::from_secs(1);

/// A relay that is steered, before its thread runs.
pub(crate) struct Begun {
    helm: Helm,
    dialer: Dialer,
    runtime: Runtime,
    settings: Steering,
}

/// The thread.
#[derive(Debug)]
pub(crate) struct Running {
    thread: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

/// Puts what control said last in force; the WireGuard `sessions` of a predecessor go on with its first
/// peers. Where nobody steers, those of the configuration are in force, and there is nothing to start.
///
/// # Errors
/// When what is kept, or a file of TLS, is of no use.
pub(crate) fn begin(
    checked: &Checked,
    front: &Arc<Front>,
    resolver: Option<&Arc<Resolver>>,
    shedder: Option<Shedder>,
    sessions: Vec<Session>,
) -> Result<Option<Begun>, OperatorFault> {
    let Some(settings) = checked.steering.clone() else {
        register(front, &checked.wireguard, sessions);
        return Ok(None);
    };
    let mut helm = Helm::new(
        Arc::clone(front),
        resolver.cloned(),
        shedder,
        own_sessions(checked)?,
        sessions,
        settings.state.clone(),
    );
    helm.restore()?;
    let dialer = Dialer::new(settings.tls.as_ref())?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| {
        OperatorFault::new(ExitCode::Failed, format_args!("cannot dial control: {error}"))
    })?;
    Ok(Some(Begun { helm, dialer, runtime, settings }))
}

/// What [`begin`] would find, a line each.
///
/// # Errors
/// As [`begin`].
pub(crate) fn examine(settings: &Steering) -> Result<Vec<String>, OperatorFault> {
    Dialer::new(settings.tls.as_ref())?;
    let controls: Vec<_> = settings.controls.iter().map(ToString::to_string).collect();
    let by = format!("{} by {}", settings.node, controls.join(", "));
    let kept = match settings.state.as_deref() {
        None => "nothing is kept; a start without control knows no clients and no peers".to_owned(),
        Some(path) => match state::read(path)? {
            None => format!("nothing is in {} yet", path.display()),
            Some((snapshot, _)) => format!(
                "revision {} of {} is in {}",
                snapshot.revision,
                snapshot.store,
                path.display()
            ),
        },
    };
    Ok(vec![by, kept])
}

impl Begun {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(self) -> Result<Running, OperatorFault> {
        let (stop, mut stopping) = watch::channel(false);
        let Self { mut helm, dialer, runtime, settings } = self;
        let body = move || {
            runtime.block_on(async {
                tokio::select! {
                    // The sender outlives the thread; its end would mean stop, too.
                    _ = stopping.wait_for(|stop| *stop) => {}
                    () = follow(&mut helm, &dialer, &settings) => {}
                }
                // A disk that takes longer keeps what was written before.
                let _ = timeout(SETTLE, helm.settle()).await;
            });
            // A name server that does not answer holds a thread for as long as libc likes.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("steering".into()).spawn(body);
        let thread = thread.map_err(|error| {
            OperatorFault::new(
                ExitCode::Unavailable,
                format_args!("cannot start a thread: {error}"),
            )
        })?;
        Ok(Running { thread, stop })
    }
}

impl Running {
    /// Ends the thread; what is in force stays so.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the steering thread panicked");
        }
    }
}

/// Goes by the first control that answers, for ever.
async fn follow(helm: &mut Helm, dialer: &Dialer, settings: &Steering) {
    let mut pauses = Pauses::new();
    let mut said = HashMap::new();
    loop {
        for control in &settings.controls {
            let ended = match dialer.dial(control).await {
                Ok(stream) => {
                    let ended = conversation::hold(stream, helm, control, &settings.node).await;
                    helm.cells().connected.set(0);
                    ended
                }
                Err(why) => Ended { heard: false, why },
            };
            complain(&mut said, control, &ended, helm.in_force().is_some());
            if ended.heard {
                pauses.begin_again();
                break;
            }
        }
        // A conversation does so itself; where there is none, the disk may be well again all the same.
        helm.keep();
        let over = Instant::now() + pauses.next();
        while timeout_at(over, helm.kept()).await.is_ok() {}
    }
}

/// Says why a control is not there, once for each reason in a row.
fn complain<'a>(
    said: &mut HashMap<&'a Control, String>,
    control: &'a Control,
    ended: &Ended,
    goes_by: bool,
) {
    let before = said.insert(control, ended.why.clone());
    if ended.heard || before.as_ref() != Some(&ended.why) {
        let until_then = match goes_by {
            true => "what it said last stays in force",
            false => "nobody is admitted until it has spoken",
        };
        tracing::warn!(%control, why = %ended.why, "control is away; {until_then}");
    }
}

/// How long to wait before each round of dialling.
struct Pauses {
    next: Duration,
    jitter: RandomState,
    count: u64,
}

impl Pauses {
    fn new() -> Self {
        Self { next: PAUSE_MIN, jitter: RandomState::new(), count: 0 }
    }

    fn begin_again(&mut self) {
        self.next = PAUSE_MIN;
    }

    /// Between half of a pause and all of it, so that a fleet does not come back at once.
    fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(PAUSE_MAX);
        self.count += 1;
        let part = self.jitter.hash_one(self.count) % 512;
        whole / 2 + whole * part as u32 / 1024
    }
}

#[cfg(test)]
mod tests;
