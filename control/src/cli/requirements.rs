//! What Coder's documents require of a path to a relay or satellite, as a check with two lines.

use serde::Serialize;

use super::output::{Colour, Output};
use crate::fault::OperatorFault;
use crate::probe::latency::{
    LOSS_BELOW_PER_MILLE, ROUND_TRIP_BELOW_MS, is_short_enough, is_whole_enough, words,
};

/// The two requirements, and what was measured.
#[derive(Debug, Serialize)]
pub(super) struct Requirements {
    round_trip: RoundTrip,
    loss: Loss,
}

#[derive(Debug, Serialize)]
struct RoundTrip {
    below_ms: u32,
    /// Nothing if nothing answered, which does not meet it.
    ms: Option<f64>,
    met: bool,
}

#[derive(Debug, Serialize)]
struct Loss {
    below_per_mille: u32,
    sent: u32,
    lost: u32,
    /// Nothing if nothing could be sent: then nobody can tell.
    met: Option<bool>,
}

impl Requirements {
    /// The check of a round trip of `ms`, and of `lost` among `sent` questions.
    pub(super) fn new(ms: Option<f64>, sent: u32, lost: u32) -> Self {
        let round_trip =
            RoundTrip { below_ms: ROUND_TRIP_BELOW_MS, ms, met: ms.is_some_and(is_short_enough) };
        let met = (sent > 0).then(|| is_whole_enough(sent, lost));
        let loss = Loss { below_per_mille: LOSS_BELOW_PER_MILLE, sent, lost, met };
        Self { round_trip, loss }
    }

    /// A line for each.
    pub(super) fn text(&self, output: &Output) -> String {
        let verdict = |met| match met {
            Some(true) => output.paint("pass", Colour::Green),
            Some(false) => output.paint("fail", Colour::Red),
            None => "not measured".to_owned(),
        };
        let Self { round_trip, loss } = self;
        let measured = round_trip.ms.map_or("no answer".to_owned(), words);
        let per_cent = f64::from(loss.below_per_mille) / 10.0;
        let lost = match loss.met {
            Some(_) => format!(" ({} of {} lost)", loss.lost, loss.sent),
            None => String::new(),
        };
        format!(
            "Round trip below {} ms: {} ({measured})\nLoss below {per_cent} %: {}{lost}",
            round_trip.below_ms,
            verdict(Some(round_trip.met)),
            verdict(loss.met),
        )
    }

    /// # Errors
    /// When one is not met, which is exit code 1.
    pub(super) fn judge(&self) -> Result<(), OperatorFault> {
        match (self.round_trip.met, self.loss.met) {
            (true, Some(true) | None) => Ok(()),
            (false, Some(true) | None) => {
                Err(OperatorFault::failed("the round trip is not as required"))
            }
            (true, Some(false)) => Err(OperatorFault::failed("more is lost than may be")),
            (false, Some(false)) => {
                Err(OperatorFault::failed("neither round trip nor loss are as required"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::Format;
    use super::*;

    #[test]
    fn what_was_measured_stands_beside_the_verdict() {
        let output = Output::new(Format::Human);
        let good = Requirements::new(Some(12.3), 200, 0);
        let text = "Round trip below 400 ms: pass (12 ms)\nLoss below 0.5 %: pass (0 of 200 lost)";
        assert_eq!(good.text(&output), text);
        assert!(good.judge().is_ok());
        assert!(Requirements::new(Some(12.3), 0, 0).judge().is_ok(), "nobody can tell the loss");
        let lossy = Requirements::new(Some(400.0), 200, 1);
        let text = "Round trip below 400 ms: fail (400 ms)\nLoss below 0.5 %: fail (1 of 200 lost)";
        assert_eq!(lossy.text(&output), text);
        assert!(lossy.judge().is_err() && Requirements::new(None, 0, 0).judge().is_err());
    }
}
