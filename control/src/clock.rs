//! The host's clock, and how its times are written: RFC 3339 in UTC, whole seconds.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use utoipa::ToSchema;

use crate::store::UnixS;

/// Now, in seconds since 1970. A clock before that year says 0.
#[must_use]
pub fn now() -> UnixS {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixS::try_from(since.as_secs()).unwrap_or(UnixS::MAX)
}

/// A time as the API writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime, example = "2026-01-31T12:00:00Z")]
pub struct Stamp(pub UnixS);

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp(self.0).ok();
        match time.and_then(|time| time.format(&Rfc3339).ok()) {
            Some(text) => f.write_str(&text),
            // Beyond the year 9999 there is no such text.
            None => write!(f, "@{}", self.0),
        }
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = OffsetDateTime::parse(&text, &Rfc3339).ok();
        // In UTC a time of the first or last year may have none that is written as ours are.
        let written = parsed.filter(|time| {
            let time = time.checked_to_offset(UtcOffset::UTC);
            time.is_some_and(|time| time.format(&Rfc3339).is_ok())
        });
        written
            .map(|time| Self(time.unix_timestamp()))
            .ok_or_else(|| de::Error::custom("is no time; write it as 2026-01-31T12:00:00Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_as_it_was_written() {
        let text = serde_json::to_string(&Stamp(1_769_860_800)).expect("a stamp is a text");
        assert_eq!(text, r#""2026-01-31T12:00:00Z""#);
        assert_eq!(serde_json::from_str::<Stamp>(&text).expect("ours"), Stamp(1_769_860_800));
        let moved: Stamp = serde_json::from_str(r#""2026-01-31T13:00:00+01:00""#).expect("RFC");
        assert_eq!(moved, Stamp(1_769_860_800));
        for wrong in ["soon", "9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"] {
            assert!(serde_json::from_value::<Stamp>(wrong.into()).is_err(), "{wrong}");
        }
    }
}
