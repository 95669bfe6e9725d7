//! What is in force, and how another snapshot takes its place: all that can fail first, then all of it.

use std::collections::{BTreeMap, HashSet};
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proto::wireguard::Session;
use steer::{Admission, Order, Revision, Said, Sessions, Snapshot};
use tokio::task::{JoinHandle, spawn_blocking};

use super::state;
use crate::certs::{Certificate, Resolver, Set};
use crate::config::Checked;
use crate::config::wireguard::Wireguard;
use crate::fault::{ExitCode, OperatorFault};
use crate::front::Front;
use crate::front::pages::Unready;
use crate::launch::{RESTART_MS, register};
use crate::observe::SteerCells;
use crate::offload::Shedder;
use crate::relay::{Admitted, Command, Tuning};

/// See the module.
pub(super) struct Helm {
    front: Arc<Front>,
    resolver: Option<Arc<Resolver>>,
    shedder: Option<Shedder>,
    /// What our own configuration says of sessions.
    own: Sessions,
    /// WireGuard sessions that a predecessor left at `begun`, to go on with once there are peers.
    resumed: Vec<Session>,
    begun: Instant,
    in_force: Option<Arc<Snapshot>>,
    /// Where what is in force is kept.
    state: Option<PathBuf>,
    /// Whether what is in force is not kept yet, nor about to be.
    to_keep: bool,
    /// The last write failed, which the log knows.
    unkept: bool,
    /// A write under way.
    keeping: Option<JoinHandle<io::Result<()>>>,
    /// The refusal that was logged last.
    refused: String,
}

/// What a line of control's comes to.
pub(super) enum Obeyed {
    /// It was adopted.
    Answer(Said),
    /// It was refused.
    Refuse(Said),
    /// There is nothing to say.
    Noted,
    /// Control hangs up, for this reason.
    Goodbye(String),
}

/// A snapshot that can be put in force. `None`: as it is.
struct Prepared {
    admitted: Option<Admitted>,
    /// Within: the own ones.
    certificates: Option<Option<Arc<Set>>>,
    tuning: Option<Tuning>,
    wireguard: Option<Wireguard>,
    drain: Option<bool>,
}

/// Bounds and times of sessions as the configuration has them.
///
/// # Errors
/// When they contradict each other.
pub(crate) fn own_sessions(checked: &Checked) -> Result<Sessions, OperatorFault> {
    let sessions = Sessions {
        queue_bytes_max: checked.queue.queue_bytes_max as u64,
        queue_packets_max: checked.queue.queue_packets_max,
        queued_bytes_max: checked.queued_bytes_max as u64,
        write_timeout_ms: checked.tcp.write_timeout.map_or(0, |limit| limit.as_millis() as u64),
        ..Sessions::default()
    };
    sessions.check().map_err(OperatorFault::config)?;
    Ok(sessions)
}

impl Helm {
    /// One that goes by the configuration until it hears otherwise.
    pub(super) fn new(
        front: Arc<Front>,
        resolver: Option<Arc<Resolver>>,
        shedder: Option<Shedder>,
        own: Sessions,
        resumed: Vec<Session>,
        state: Option<PathBuf>,
    ) -> Self {
        Self {
            front,
            resolver,
            shedder,
            own,
            resumed,
            begun: Instant::now(),
            in_force: None,
            state,
            to_keep: false,
            unkept: false,
            keeping: None,
            refused: String::new(),
        }
    }

    pub(super) fn in_force(&self) -> Option<&Snapshot> {
        self.in_force.as_deref()
    }

    pub(super) fn cells(&self) -> &SteerCells {
        &self.front.registry.steer
    }

    /// Puts what is kept in force. Where nothing is, nobody is admitted until control says who is:
    /// it may be control that keeps somebody out.
    ///
    /// # Errors
    /// When it is of no use to this configuration.
    pub(super) fn restore(&mut self) -> Result<(), OperatorFault> {
        self.front.fabric.admit(Admitted::Keys(HashSet::new()));
        self.front.unsteered.store(true, Relaxed);
        let Some(path) = self.state.clone() else { return Ok(()) };
        let Some((snapshot, since)) = state::read(&path)? else { return Ok(()) };
        let prepared = self.prepare(&snapshot).map_err(|why| {
            OperatorFault::config(format_args!(
                "{}: {why}; change the settings back, or remove it to know no clients and no peers until control answers",
                path.display()
            ))
        })?;
        let (revision, store) = (snapshot.revision.0, snapshot.store.clone());
        self.put_in_force(snapshot, prepared);
        self.confirm(since);
        tracing::info!(revision, store, file = %path.display(), "going by what control said last");
        Ok(())
    }

    /// Does what a line of control's says.
    pub(super) fn obey(&mut self, line: &[u8]) -> Obeyed {
        let now = SystemTime::now();
        let in_force = self.in_force.as_deref();
        let revision = in_force.map(|snapshot| snapshot.revision).unwrap_or_default();
        let (offered, snapshot) = match Order::read(line) {
            Ok(Some(Order::Whole(next))) => {
                (next.revision, next.may_replace(in_force).map(|()| *next))
            }
            Ok(Some(Order::Delta(delta))) => {
                let none = Snapshot::default();
                (delta.to, in_force.unwrap_or(&none).after(&delta))
            }
            Ok(Some(Order::Current { revision: newest })) => {
                if newest == revision && in_force.is_some() {
                    self.confirm(now);
                }
                return Obeyed::Noted;
            }
            Ok(Some(Order::Goodbye { why })) => return Obeyed::Goodbye(why),
            Ok(None) => {
                self.cells().unknown.increment();
                return Obeyed::Noted;
            }
            Err(refusal) => (revision, Err(refusal)),
        };
        let adopted = snapshot
            .map_err(|refusal| refusal.to_string())
            .and_then(|next| self.adopt(next, now).map_err(|fault| fault.to_string()));
        match adopted {
            Ok(()) => Obeyed::Answer(Said::Adopted { revision: offered }),
            Err(why) => self.refuse(offered, &why),
        }
    }

    fn adopt(&mut self, next: Snapshot, now: SystemTime) -> Result<(), OperatorFault> {
        let prepared = self.prepare(&next)?;
        let (revision, clients, peers) = (next.revision.0, next.clients.len(), next.peers.len());
        let (links, certificates) = (next.links.len(), next.certificates.len());
        self.put_in_force(next, prepared);
        self.to_keep = true;
        self.refused.clear();
        self.confirm(now);
        self.cells().adopted.increment();
        tracing::info!(revision, clients, peers, links, certificates, "snapshot adopted");
        Ok(())
    }

    fn refuse(&mut self, revision: Revision, why: &str) -> Obeyed {
        self.cells().refused.increment();
        // A control that goes on and on is told each time; the log hears of it once.
        if self.refused != why {
            why.clone_into(&mut self.refused);
            tracing::error!(%revision, why, "snapshot refused, what was in force stays so");
        }
        Obeyed::Refuse(Said::refused(revision, &why))
    }

    /// Begins to keep what is in force, if it is not kept already. Of several in a row the last is.
    pub(super) fn keep(&mut self) {
        let (Some(path), Some(snapshot)) = (&self.state, &self.in_force) else { return };
        if self.to_keep && self.keeping.is_none() {
            let (path, snapshot) = (path.clone(), Arc::clone(snapshot));
            self.keeping = Some(spawn_blocking(move || state::write(&path, &snapshot)));
            self.to_keep = false;
        }
    }

    /// Waits for the end of a write, and begins the next. For ever where there is none.
    pub(super) async fn kept(&mut self) {
        let Some(keeping) = &mut self.keeping else { return pending().await };
        let written = keeping.await.unwrap_or_else(|panicked| Err(panicked.into()));
        self.keeping = None;
        let Err(error) = written else {
            self.unkept = false;
            return self.keep();
        };
        self.cells().keep_failures.increment();
        // Tried again with the next order, report or round of dialling.
        self.to_keep = true;
        if !std::mem::replace(&mut self.unkept, true) {
            tracing::error!(%error, "what control said is not kept; it is in force until a restart");
        }
    }

    /// Waits until nothing is left to be written.
    pub(super) async fn settle(&mut self) {
        self.keep();
        while self.keeping.is_some() {
            self.kept().await;
        }
    }

    /// How the relay is.
    pub(super) fn report(&self) -> Said {
        let unready = self.front.unready();
        Said::Report {
            sessions: self.front.sessions(),
            draining: unready.contains(&Unready::Draining),
            stalled_cores: unready.iter().filter(is_stalled).count() as u32,
        }
    }

    /// Everything that can fail.
    fn prepare(&self, next: &Snapshot) -> Result<Prepared, OperatorFault> {
        let old = self.in_force.as_deref();
        if let Some(why) = self.front.unready().iter().find(is_stalled) {
            // What waits for it would be in force when it turns again, and has no bound.
            let fault = format_args!("{why}: nothing more is asked of it");
            return Err(OperatorFault::new(ExitCode::Failed, fault));
        }
        let sessions = next.sessions.over(&self.own);
        sessions.check().map_err(|refusal| {
            OperatorFault::config(format_args!("sessions, over this relay's own: {refusal}"))
        })?;
        let changed =
            |is_same: fn(&Snapshot, &Snapshot) -> bool| old.is_none_or(|old| !is_same(old, next));
        Ok(Prepared {
            admitted: changed(|a, b| a.admission == b.admission && a.clients == b.clients)
                .then(|| admitted(next)),
            certificates: changed(|a, b| same(&a.certificates, &b.certificates))
                .then(|| self.certificates(next))
                .transpose()?,
            tuning: changed(|a, b| a.sessions == b.sessions).then(|| Tuning::from(&sessions)),
            wireguard: changed(|a, b| a.peers == b.peers && a.links == b.links)
                .then(|| Wireguard::from_snapshot(next))
                .transpose()?,
            drain: changed(|a, b| a.drain == b.drain).then_some(next.drain),
        })
    }

    /// What the resolver is to present. Where TLS is somebody else's, they are judged and not used.
    fn certificates(&self, next: &Snapshot) -> Result<Option<Arc<Set>>, OperatorFault> {
        let now = SystemTime::now();
        let mut certificates = Vec::with_capacity(next.certificates.len());
        for (name, texts) in &next.certificates {
            let certificate = Certificate::steered(name, texts)?;
            if certificate.has_expired(now) {
                tracing::warn!(certificate = name, "control's certificate has expired; renew it");
            }
            certificates.push(certificate);
        }
        match &self.resolver {
            Some(resolver) => resolver.prepare(certificates),
            None => Ok(None),
        }
    }

    /// Cannot fail; no part of it waits for a relay core.
    fn put_in_force(&mut self, next: Snapshot, prepared: Prepared) {
        let Prepared { admitted, certificates, tuning, wireguard, drain } = prepared;
        if let Some(admitted) = admitted {
            self.front.fabric.admit(admitted);
        }
        if let (Some(set), Some(resolver)) = (certificates, &self.resolver) {
            resolver.steer(set);
        }
        if let Some(tuning) = tuning {
            self.front.fabric.tune(tuning);
        }
        if let Some(wireguard) = wireguard {
            let sessions = self.resume();
            register(&self.front, &wireguard, sessions);
        }
        if let Some(drain) = drain {
            self.drain(drain);
        }
        self.front.unsteered.store(false, Relaxed);
        self.cells().revision.set(next.revision.0);
        self.in_force = Some(Arc::new(next));
    }

    /// The sessions of a predecessor that still live.
    fn resume(&mut self) -> Vec<Session> {
        let age = self.begun.elapsed();
        let aged = |it: Session| Some(Session { left: it.left.checked_sub(age)?, ..it });
        std::mem::take(&mut self.resumed).into_iter().filter_map(aged).collect()
    }

    fn drain(&self, drain: bool) {
        if self.front.draining.swap(drain, Relaxed) == drain {
            return;
        }
        match drain {
            true => tracing::info!("draining, as control says"),
            false => tracing::info!("draining no longer, as control says"),
        }
        for core in 0..self.front.fabric.cores() {
            let (reconnect_in_ms, try_for_ms) = RESTART_MS;
            self.front.fabric.post(
                core,
                match drain {
                    true => Command::Drain { reconnect_in_ms, try_for_ms },
                    false => Command::Resume,
                },
            );
        }
        if let Some(shedder) = &self.shedder {
            shedder.shed(drain);
        }
    }

    /// What is in force was the newest at `when`.
    fn confirm(&self, when: SystemTime) {
        let unix_s = when.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.cells().confirmed_unix_s.set(unix_s);
    }
}

fn is_stalled(why: &&Unready) -> bool {
    matches!(why, Unready::CoreStalled(_))
}

fn admitted(snapshot: &Snapshot) -> Admitted {
    match snapshot.admission {
        Admission::Open => Admitted::Everyone,
        Admission::Registered => {
            Admitted::Keys(snapshot.clients.values().map(|key| key.0).collect())
        }
    }
}

fn same(
    one: &BTreeMap<String, steer::Certificate>,
    other: &BTreeMap<String, steer::Certificate>,
) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((a, one), (b, other))| a == b && one.matches(other))
}
