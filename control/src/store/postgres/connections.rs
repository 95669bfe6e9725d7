//! The connections to the server: made together, watched, and made anew when they are lost.
//!
//! Owns their settings, the session that listens for other controls' changes and may hold the lock
//! of the one that leads, and the task that keeps all this up. It must never let a call wait longer
//! than [`ANSWER`] for a server that is silent. `postgres` takes [`Connections`] out of [`State`].

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Connection, Error, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::target::Target;
use super::{LOCKS, causes, fault, refused, schema};
use crate::fault::{ExitCode, OperatorFault};
use crate::store::{Revision, StoreFault};

/// Time for one answer of the server. Longer silence counts as its loss.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// Time to make all connections.
const CONNECT: Duration = Duration::from_secs(5);
/// How often the server is asked whether it is there, what the revision is, and for the lead.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Pauses between attempts to come back: the first, and the longest, which doubling ends at.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The channel on which controls tell each other of changes.
pub(super) const CHANNEL: &str = "perigee_control";

/// Times in milliseconds. Statements and waits for another's change end before [`ANSWER`] does, so
/// that the server says so itself. A control that froze or was cut off in the middle of a change
/// holds up others only until its session is ended. Answered changes are on disk, whatever else the
/// server is used for. Rows come by an index in its order even where the server has not counted them
/// yet: without that word it sorted all that are left for each page, which took 4 ms instead of 0.5.
/// No statement here is long enough to be worth compiling.
const SESSION: &str = "\
    SET search_path TO perigee;
    SET client_min_messages TO warning;
    SET statement_timeout TO 4000;
    SET lock_timeout TO 4000;
    SET idle_in_transaction_session_timeout TO 5000;
    SET idle_session_timeout TO 0;
    SET enable_bitmapscan TO off;
    SET jit TO off;
    SET tcp_keepalives_idle TO 15;
    SET tcp_keepalives_interval TO 5;
    SET tcp_keepalives_count TO 3;
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') = 'off';";
/// A listener that has sent no heartbeat for so long is gone, and with it its lead: longer than its
/// control takes to notice, so that no two lead.
const LISTENER: &str = "SET idle_session_timeout TO 15000";

/// The lock that the leader's session holds.
const LEAD: i32 = 2;

/// What there is to work with.
pub(super) enum State {
    /// Everything.
    Up {
        connections: Arc<Connections>,
        /// Whether the listener holds the lock of the leader.
        leads: bool,
    },
    /// Nothing, for this reason, since this time.
    Down { why: String, since: Instant },
}

/// The connections that calls use.
pub(super) struct Connections {
    /// What is read is read by single statements, many at a time.
    reader: Client,
    /// When the last of them was answered.
    answered: watch::Sender<Instant>,
    /// One change at a time.
    pub(super) writer: Mutex<Client>,
    /// Why they are of no use any more.
    lost: watch::Sender<Option<String>>,
}

impl Connections {
    /// What `work` gives. A server that is silent, or says that it goes, is lost to all calls.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreFault> {
        let Ok(done) = timeout(ANSWER, work).await else { return Err(self.silent()) };
        done.map_err(|error| self.fault(&error))
    }

    /// The rows that a single statement reads. The server answers one after the other: while it does, it
    /// is not silent, however many are before this one.
    pub(super) async fn read(
        &self,
        sql: &str,
        with: &[super::Param<'_>],
    ) -> Result<Vec<Row>, StoreFault> {
        let mut answer = pin!(self.reader.query_typed(sql, with));
        let mut since = Instant::now();
        loop {
            let until = since + ANSWER;
            if let Ok(answer) = timeout_at(until, &mut answer).await {
                self.answered.send_replace(Instant::now());
                return answer.map_err(|error| self.fault(&error));
            }
            let answered = *self.answered.borrow();
            if answered <= since {
                return Err(self.silent());
            }
            since = answered;
        }
    }

    /// What `error` is in our words. One that says that the server goes is the end of all of them.
    fn fault(&self, error: &Error) -> StoreFault {
        let fault = fault(error);
        if let StoreFault::Away(why) = &fault {
            self.lose(why);
        }
        fault
    }

    /// Gives all of them up, for the server says nothing.
    fn silent(&self) -> StoreFault {
        let why = format!("no answer in {} s", ANSWER.as_secs());
        self.lose(&why);
        StoreFault::Away(why)
    }

    /// Gives all of them up.
    pub(super) fn lose(&self, why: &str) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            lost.get_or_insert_with(|| why.to_owned());
            first
        });
    }
}

/// Which server, and how it is connected to.
pub(super) struct Server {
    pub(super) target: Target,
    pub(super) connector: MakeRustlsConnect,
}

type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

impl Server {
    /// A connection as the server gives it, and the half that has to run for it.
    pub(super) async fn connect(&self) -> Result<(Client, Driver), OperatorFault> {
        let config = self.target.config()?;
        let connected = config.connect(self.connector.clone()).await;
        connected.map_err(|error| refused(&self.target, &error))
    }
}

/// Connections with the session that listens beside them.
pub(super) struct Made {
    connections: Arc<Connections>,
    listener: Client,
    /// Somebody said that something has changed.
    heard: Arc<Notify>,
    /// They run the connections; each ends with why its connection did.
    drivers: JoinSet<String>,
    /// The store's own secret.
    pub(super) secret: [u8; 32],
    seen: Point,
    leads: bool,
}

/// A revision, and a digest of what the log has of it; `None` before the first.
#[derive(Clone, Debug)]
struct Point {
    revision: Revision,
    past: Option<String>,
}

impl Made {
    /// Connects to a store whose schema is there.
    pub(super) async fn new(server: &Server) -> Result<Self, OperatorFault> {
        match timeout(CONNECT, Self::all(server)).await {
            Ok(made) => made,
            Err(_) => Err(OperatorFault::new(
                ExitCode::Unavailable,
                format_args!("{}: no connection in {} s", server.target, CONNECT.as_secs()),
            )),
        }
    }

    async fn all(server: &Server) -> Result<Self, OperatorFault> {
        // Each session is a process that the server starts: they begin beside one another.
        let ((listener, heeding), (reader, reading), (writer, writing)) =
            tokio::try_join!(server.connect(), server.connect(), server.connect())?;
        let (mut drivers, heard) = (JoinSet::new(), Arc::new(Notify::new()));
        drivers.spawn(listen(heeding, Arc::clone(&heard)));
        drivers.spawn(drive(reading));
        drivers.spawn(drive(writing));
        let refused = |error: Error| refused(&server.target, &error);
        tokio::try_join!(
            listener.batch_execute(SESSION),
            reader.batch_execute(SESSION),
            writer.batch_execute(SESSION),
        )
        .map_err(refused)?;
        let listen = format!("{LISTENER}; LISTEN {CHANNEL}");
        listener.batch_execute(&listen).await.map_err(refused)?;
        // Read after LISTEN: what changes from here on is told.
        let secret = schema::look(&listener, &server.target).await?;
        let (seen, leads) = beat(&listener, false).await.map_err(refused)?;
        let (writer, lost) = (Mutex::new(writer), watch::Sender::new(None));
        let answered = watch::Sender::new(Instant::now());
        let connections = Arc::new(Connections { reader, answered, writer, lost });
        Ok(Self { connections, listener, heard, drivers, secret, seen, leads })
    }

    /// Whether the store has come from `seen` to where it is.
    async fn is_after(&self, seen: &Point) -> Result<bool, Error> {
        let Some(past) = &seen.past else { return Ok(true) };
        let sql = "SELECT EXISTS (
                       SELECT FROM audit WHERE revision = $1 AND md5(audit::text) = $2
                   )";
        let with: [super::Param<'_>; 2] = [(&seen.revision.0, Type::INT8), (past, Type::TEXT)];
        self.listener.query_typed_one(sql, &with).await?.try_get(0)
    }

    fn state(&self) -> State {
        State::Up { connections: Arc::clone(&self.connections), leads: self.leads }
    }
}

/// Runs a connection to its end.
async fn drive(driver: Driver) -> String {
    match driver.await {
        Ok(()) => "the connection was closed".to_owned(),
        Err(error) => causes(&error),
    }
}

/// Runs the listener's connection to its end, and passes on that it hears something: what is true
/// is read, for anybody may say anything on a channel.
async fn listen(mut driver: Driver, heard: Arc<Notify>) -> String {
    loop {
        match poll_fn(|context| driver.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notification(_))) => heard.notify_one(),
            Some(Ok(_)) => {}
            Some(Err(error)) => return causes(&error),
            None => return "the connection was closed".to_owned(),
        }
    }
}

/// Moves the hint forward. What was read may be older than a change of our own.
pub(super) fn raise(revisions: &watch::Sender<Revision>, to: Revision) {
    revisions.send_if_modified(|now| {
        let newer = to > *now;
        *now = to.max(*now);
        newer
    });
}

/// Where the store is, and whether this session leads: it asks for the lock unless it has it.
async fn beat(listener: &Client, leads: bool) -> Result<(Point, bool), Error> {
    let sql = "SELECT store.revision, md5(audit::text),
                      CASE WHEN $1 THEN true ELSE pg_try_advisory_lock($2, $3) END
               FROM store LEFT JOIN audit USING (revision)";
    let with: [super::Param<'_>; 3] =
        [(&leads, Type::BOOL), (&LOCKS, Type::INT4), (&LEAD, Type::INT4)];
    let row = listener.query_typed_one(sql, &with).await?;
    Ok((Point { revision: Revision(row.try_get(0)?), past: row.try_get(1)? }, row.try_get(2)?))
}

/// Keeps the connections up for as long as it runs.
pub(super) struct Keeper {
    pub(super) server: Server,
    pub(super) state: watch::Sender<State>,
    pub(super) revisions: watch::Sender<Revision>,
}

impl Keeper {
    /// What there is once `made` is made.
    pub(super) fn new(server: Server, made: &Made, revisions: watch::Sender<Revision>) -> Self {
        revisions.send_replace(made.seen.revision);
        Self { server, state: watch::Sender::new(made.state()), revisions }
    }

    pub(super) async fn keep(self, mut made: Made) {
        let secret = made.secret;
        let (mut seen, mut pause) = (made.seen.clone(), PAUSE_MIN);
        loop {
            let began = Instant::now();
            let why = self.attend(made, &mut seen).await;
            tracing::warn!(why, "the database is lost");
            self.state.send_replace(State::Down { why, since: Instant::now() });
            // Connections that are lost as soon as they are made are not made at full speed.
            if began.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
            made = loop {
                sleep(jittered(pause)).await;
                pause = (2 * pause).min(PAUSE_MAX);
                match self.again(&secret, &seen).await {
                    Ok(made) => break made,
                    Err(fault) => self.still_down(&fault),
                }
            };
            tracing::info!(revision = %made.seen.revision, "the database is back");
            self.state.send_replace(made.state());
            // Also when nothing has changed: who failed meanwhile looks again.
            self.revisions.send_replace(made.seen.revision);
        }
    }

    /// Connects anew, to the same store in a later state: what this process remembers of it would be
    /// wrong of any other.
    async fn again(&self, secret: &[u8; 32], seen: &Point) -> Result<Made, OperatorFault> {
        let (made, target) = (Made::new(&self.server).await?, &self.server.target);
        let fault = |what| OperatorFault::config(format_args!("{target}: {what}; restart control"));
        if made.secret != *secret {
            return Err(fault("is another database than at the start"));
        }
        match made.is_after(seen).await.map_err(|error| refused(target, &error))? {
            true => Ok(made),
            false => Err(fault("was put back to an earlier state")),
        }
    }

    fn still_down(&self, fault: &OperatorFault) {
        let now = fault.to_string();
        self.state.send_if_modified(|state| match state {
            State::Down { why, .. } if *why != now => {
                tracing::warn!(why = now, "the database is away");
                *why = now;
                true
            }
            State::Down { .. } | State::Up { .. } => false,
        });
    }

    /// Watches over `made` until it is lost, and keeps `seen` up; says why it was.
    async fn attend(&self, made: Made, seen: &mut Point) -> String {
        let Made { connections, listener, heard, mut drivers, leads, seen: now, .. } = made;
        *seen = now;
        let mut lost = connections.lost.subscribe();
        let beats = self.beats(&connections, &listener, &heard, leads, seen);
        tokio::select! {
            Some(ended) = drivers.join_next() => ended.unwrap_or_else(|error| error.to_string()),
            Some(why) = async { lost.wait_for(Option::is_some).await.ok()?.clone() } => why,
            fault = beats => fault.to_string(),
        }
    }

    /// Asks the server how things are, from time to time and when something was heard, until it
    /// does not answer.
    async fn beats(
        &self,
        connections: &Arc<Connections>,
        listener: &Client,
        heard: &Notify,
        mut leads: bool,
        seen: &mut Point,
    ) -> StoreFault {
        let mut beats = interval(HEARTBEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if leads {
            self.lead(connections);
        }
        loop {
            tokio::select! {
                _ = beats.tick() => {}
                () = heard.notified() => {}
            }
            match connections.within(beat(listener, leads)).await {
                Ok((point, now)) => {
                    raise(&self.revisions, point.revision);
                    *seen = point;
                    if now && !leads {
                        self.lead(connections);
                    }
                    leads = now;
                }
                Err(fault) => return fault,
            }
        }
    }

    fn lead(&self, connections: &Arc<Connections>) {
        tracing::info!("leads the controls on this database");
        let connections = Arc::clone(connections);
        self.state.send_replace(State::Up { connections, leads: true });
    }
}

/// Half of `pause` and a random part of the other, so that controls do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let [part] = crate::token::random::<1>();
    pause / 2 + pause / 2 * u32::from(part) / 256
}
