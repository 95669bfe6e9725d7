//! How this relay speaks TLS: versions, suites, ALPN, and no memory of past sessions.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{CipherSuite, ServerConfig};

use super::Resolver;
use crate::fault::{ExitCode, OperatorFault};

/// The one application protocol we speak. HTTP/2 cannot carry the upgrade.
const HTTP1: &[u8] = b"http/1.1";

/// TLS as this relay serves it, in two flavours that differ in ALPN only.
///
/// A client that offers `http/1.1`, alone or with others, gets it selected. One that offers no ALPN
/// (the stock DERP client) or only others (such as `h2` alone) gets none selected and the handshake
/// succeeds; it then speaks HTTP/1.1 or gives up by itself. rustls with a list would abort the
/// latter with `no_application_protocol`, so such clients are served from a configuration without.
#[derive(Clone, Debug)]
pub struct ServerConfigs {
    http1: Arc<ServerConfig>,
    no_alpn: Arc<ServerConfig>,
}

impl ServerConfigs {
    /// TLS 1.2 and 1.3 with the certificates of `resolver`.
    ///
    /// # Errors
    /// When the crypto library offers neither version.
    pub fn new(resolver: Arc<Resolver>) -> Result<Self, OperatorFault> {
        let no_alpn = config(resolver)?;
        let mut http1 = no_alpn.clone();
        http1.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(Self { http1: Arc::new(http1), no_alpn: Arc::new(no_alpn) })
    }

    /// The configuration that suits what the client offers. `hello` is its first record as received.
    ///
    /// A protocol name is looked for as it lies in the ALPN extension, behind its length byte; no
    /// other part of a hello can hold it, but for a crafted one, whose handshake then fails.
    #[must_use]
    pub fn for_hello(&self, hello: &[u8]) -> &Arc<ServerConfig> {
        let offers_http1 = hello.windows(1 + HTTP1.len()).any(|window| {
            window
                .split_first()
                .is_some_and(|(len, name)| usize::from(*len) == HTTP1.len() && name == HTTP1)
        });
        if offers_http1 { &self.http1 } else { &self.no_alpn }
    }
}

fn config(resolver: Arc<Resolver>) -> Result<ServerConfig, OperatorFault> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(|fault| {
            OperatorFault::new(ExitCode::Unavailable, format_args!("TLS is not available: {fault}"))
        })?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    // DERP clients keep no session cache: tickets would cost bytes and never be used.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // The relay cores take the record keys over after the handshake.
    config.enable_secret_extraction = true;
    config.ignore_client_order = true;
    Ok(config)
}

/// aws-lc-rs with its suites in our order. Key exchange groups go by the client's preference, as
/// rustls does it, so that a client never needs a second round trip for a group it sent a share of.
pub(crate) fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let gcm_first = has_aes_instructions();
    // A stable sort: suites of equal rank keep the library's order.
    provider.cipher_suites.sort_by_key(|suite| rank(suite.suite(), gcm_first));
    provider
}

/// AES-128-GCM is the cheapest suite where the CPU has AES instructions, ChaCha20 where it has not.
fn rank(suite: CipherSuite, gcm_first: bool) -> u8 {
    use CipherSuite as Suite;
    match suite {
        Suite::TLS13_AES_128_GCM_SHA256 => 1,
        Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 2,
        Suite::TLS13_CHACHA20_POLY1305_SHA256
        | Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => {
            if gcm_first {
                4
            } else {
                0
            }
        }
        _ => 3,
    }
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}
