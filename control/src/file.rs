//! Reading what operators name: whole files of text, but no more than what is wanted may have. A name
//! may be that of a device or pipe that never ends.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a settings, certificate or key file, at most; common ones have some thousand.
pub(crate) const TEXT_BYTES_MAX: usize = 1024 * 1024;

/// The text of the file at `path`.
///
/// # Errors
/// Also when it is longer than `bytes_max`, or no text.
pub(crate) fn read_text(path: &Path, bytes_max: usize) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if bytes.len() > bytes_max {
        return Err(wrong(format!("is longer than {bytes_max} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| wrong("is no text in UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_too_long() {
        let fault = read_text(Path::new("/dev/zero"), 1000).expect_err("it never ends");
        assert_eq!(fault.to_string(), "is longer than 1000 bytes");
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let text = read_text(&own, TEXT_BYTES_MAX).expect("it is there");
        assert_eq!(read_text(&own, text.len()).expect("it fits"), text);
        assert!(read_text(&own, text.len() - 1).is_err());
    }
}
