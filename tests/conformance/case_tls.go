// Cases about TLS: versions, ALPN, the certificate chain and hostile
// handshakes.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"time"

	"tailscale.com/derp/derpconst"
)

const (
	tls13 = tls.VersionTLS13
	// alertProtocolVersion is from RFC 8446, section 6.
	alertProtocolVersion = tls.AlertError(70)
	// metaCertSerial is the DERP protocol version, which the meta certificate
	// carries as its serial number.
	metaCertSerial = 2
)

func init() {
	register(
		caseSpec{name: "tls_1_3_is_negotiated", run: func(t *T) { t.joinsOverTLS(tls.VersionTLS13) }},
		caseSpec{name: "tls_1_2_works", run: func(t *T) { t.joinsOverTLS(tls.VersionTLS12) }},
		caseSpec{name: "tls_1_1_is_refused", run: tls11IsRefused},
		caseSpec{name: "tls_alpn_selects_http_1_1", run: alpnSelectsHTTP11},
		caseSpec{name: "tls_chain_ends_in_meta_certificate", run: chainEndsInMetaCertificate},
		caseSpec{name: "tls_chain_is_the_same_for_https_probes", run: chainForProbes},
		caseSpec{name: "tls_garbage_closes_only_its_connection", run: tlsGarbage},
		caseSpec{name: "tls_half_open_handshake_is_cut_at_30_s", slow: true, run: halfOpenHandshakeIsCut},
	)
}

func (t *T) joinsOverTLS(version uint16) {
	for _, httpUpgrade := range []bool{true, false} {
		s := t.joinWith(joinOptions{httpUpgrade: httpUpgrade, configureTLS: func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = version, version
		}})
		if got := s.conn.(*tls.Conn).ConnectionState().Version; got != version {
			t.failf("negotiated %#x, want %#x", got, version)
		}
		s.wantAlive()
		packet := randomBytes(packetBytesMax)
		s.sendPacket(s.public, packet)
		s.wantPacket(s.public, packet)
	}
}

func tls11IsRefused(t *T) {
	conf := t.target.tlsConfig()
	conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	conn, err := t.target.dialTLS(conf, 0)
	if err == nil {
		conn.Close()
		t.failf("a handshake with TLS 1.1 succeeded")
	}
	var alert tls.AlertError
	if errors.As(err, &alert) && alert == alertProtocolVersion {
		return
	}
	if !strings.Contains(err.Error(), alertProtocolVersion.Error()) {
		t.failf("TLS 1.1 was refused with %v, want alert protocol_version", err)
	}
}

func alpnSelectsHTTP11(t *T) {
	for _, offer := range []struct {
		protocols []string
		want      string
	}{
		{nil, ""},
		{[]string{"http/1.1"}, "http/1.1"},
		{[]string{"h2", "http/1.1"}, "http/1.1"},
		{[]string{"http/1.1", "h2"}, "http/1.1"},
	} {
		s := t.joinWith(joinOptions{configureTLS: func(c *tls.Config) { c.NextProtos = offer.protocols }})
		if got := s.conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != offer.want {
			t.failf("offered %q, the server selected %q, want %q", offer.protocols, got, offer.want)
		}
		s.wantAlive()
	}
}

// leafPEM is the certificate the server presents first.
func (t *T) leafPEM() []byte {
	conn, err := t.target.dialTLS(t.target.tlsConfig(), 0)
	t.check(err, "connecting")
	defer conn.Close()
	leaf := conn.ConnectionState().PeerCertificates[0]
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
}

// wantMetaCertificate holds the last certificate against what stock clients
// and probers look for in it.
func (t *T) wantMetaCertificate(chain []*x509.Certificate) {
	if len(chain) < 2 {
		t.failf("the chain has %d certificates, want a leaf and the meta certificate", len(chain))
	}
	for i, cert := range chain[:len(chain)-1] {
		if strings.HasPrefix(cert.Subject.CommonName, derpconst.MetaCertCommonNamePrefix) {
			t.failf("certificate %d of %d is a meta certificate, only the last may be", i+1, len(chain))
		}
	}
	meta := chain[len(chain)-1]
	if want := derpconst.MetaCertCommonNamePrefix + t.target.serverKey.UntypedHexString(); meta.Subject.CommonName != want {
		t.failf("the meta certificate's CN is %q, want %q", meta.Subject.CommonName, want)
	}
	if meta.Issuer.CommonName != meta.Subject.CommonName {
		t.failf("the meta certificate's issuer is %q, want its subject", meta.Issuer.CommonName)
	}
	if !meta.SerialNumber.IsInt64() || meta.SerialNumber.Int64() != metaCertSerial {
		t.failf("the meta certificate's serial is %v, want %d", meta.SerialNumber, metaCertSerial)
	}
	// A prober leaves out the expiry check exactly when both are equal, and
	// the certificate is short-lived enough to trip it.
	if len(meta.SubjectKeyId) != 0 || len(meta.AuthorityKeyId) != 0 {
		t.failf("the meta certificate has key identifiers %x %x, want none", meta.SubjectKeyId, meta.AuthorityKeyId)
	}
	if meta.PublicKeyAlgorithm != x509.Ed25519 || !selfSigned(meta) {
		t.failf("the meta certificate is not self-signed with Ed25519")
	}
	if now := time.Now(); now.Before(meta.NotBefore) || now.After(meta.NotAfter) {
		t.failf("the meta certificate is valid from %v to %v", meta.NotBefore, meta.NotAfter)
	}
	if !meta.BasicConstraintsValid || meta.IsCA {
		t.failf("the meta certificate needs basic constraints that say it is no CA")
	}
}

// selfSigned checks the signature alone: the certificate is no CA, so the
// standard check would refuse it as its own issuer.
func selfSigned(cert *x509.Certificate) bool {
	public, ok := cert.PublicKey.(ed25519.PublicKey)
	return ok && ed25519.Verify(public, cert.RawTBSCertificate, cert.Signature)
}

func chainEndsInMetaCertificate(t *T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conf := t.target.tlsConfig()
		conf.MinVersion, conf.MaxVersion = version, version
		conn, err := t.target.dialTLS(conf, 0)
		t.check(err, "connecting with TLS %#x", version)
		t.wantMetaCertificate(conn.ConnectionState().PeerCertificates)
		conn.Close()
	}
}

func chainForProbes(t *T) {
	response, err := t.target.httpClient().Get("https://" + t.target.hostPort() + "/derp/probe")
	t.check(err, "GET /derp/probe")
	response.Body.Close()
	t.wantMetaCertificate(response.TLS.PeerCertificates)
}

func tlsGarbage(t *T) {
	witness := t.join()
	record, _ := hex.DecodeString("1603010200")
	for _, junk := range [][]byte{
		randomBytes(517),
		bytes.Repeat([]byte{0}, 4096),
		[]byte("GET /derp HTTP/1.1\r\n\r\n"),
		append(record, randomBytes(512)...),
		{0x16, 0x03, 0x01, 0xff, 0xff},
	} {
		conn, err := t.target.dialTCP(0)
		t.check(err, "connecting")
		conn.SetDeadline(time.Now().Add(patience))
		conn.Write(junk)
		conn.CloseWrite()
		// The server may answer with an alert or a hint in clear; it has to
		// come to an end either way.
		if _, err := io.Copy(io.Discard, conn); err != nil && !isReset(err) {
			t.failf("after %d bytes of garbage: %v", len(junk), err)
		}
		conn.Close()
	}
	witness.wantAlive()
}

func halfOpenHandshakeIsCut(t *T) {
	conn, err := t.target.dialTCP(0)
	t.check(err, "connecting")
	defer conn.Close()
	started := time.Now()
	conn.SetDeadline(started.Add(45 * time.Second))
	conn.Write([]byte{0x16, 0x03, 0x01})
	if _, err := io.Copy(io.Discard, conn); err != nil && !isReset(err) {
		t.failf("a half-open handshake: %v", err)
	}
	if took := time.Since(started); took < 5*time.Second {
		t.failf("a half-open handshake was cut after %v, a slow client needs longer", took)
	}
}
