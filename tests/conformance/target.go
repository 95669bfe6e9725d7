// The target owns what is known about the server under test: its addresses,
// its certificate rule and its DERP key. It must never speak DERP beyond
// learning that key. Sessions and cases dial through it.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tailscale.com/derp/derpconst"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// dialTimeout bounds TCP and TLS set-up on what is always a near server.
const dialTimeout = 10 * time.Second

type target struct {
	url  *url.URL
	host string // as written in the URL: a name or a bare IP
	port int
	addr netip.AddrPort // where host was found

	pinSHA256 string // lower-case hex of the leaf, or empty
	insecure  bool

	plainHTTP string // host:port, or empty
	stun      []netip.AddrPort
	derpprobe string
	stunc     string
	stock     bool

	serverKey key.NodePublic
}

func newTarget(rawURL, certPin string, insecure bool) (*target, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("-url: %w", err)
	}
	if u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("-url %q: want https://host:port/derp", rawURL)
	}
	tg := &target{url: u, host: u.Hostname(), port: 443, insecure: insecure}
	if p := u.Port(); p != "" {
		if tg.port, err = strconv.Atoi(p); err != nil {
			return nil, fmt.Errorf("-url %q: %w", rawURL, err)
		}
	}
	if certPin != "" {
		pin, ok := strings.CutPrefix(certPin, "sha256-raw:")
		if raw, err := hex.DecodeString(pin); !ok || err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("-cert-pin %q: want sha256-raw: and 64 hex digits", certPin)
		}
		tg.pinSHA256 = strings.ToLower(pin)
	}
	resolved, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(tg.host, strconv.Itoa(tg.port)))
	if err != nil {
		return nil, fmt.Errorf("-url %q: %w", rawURL, err)
	}
	tg.addr = netip.AddrPortFrom(resolved.AddrPort().Addr().Unmap(), uint16(tg.port))
	return tg, nil
}

func parseStunAddrs(list []string) ([]netip.AddrPort, error) {
	var addrs []netip.AddrPort
	for _, s := range list {
		a, err := net.ResolveUDPAddr("udp", strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		ap := a.AddrPort()
		addrs = append(addrs, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return addrs, nil
}

// tlsConfig is the client side for hand-made connections. It follows the rule
// of a stock client's sha256-raw pin: leave out the meta certificate, then
// exactly one certificate must be there and must be the pinned one.
func (tg *target) tlsConfig() *tls.Config {
	conf := &tls.Config{ServerName: tg.host, DynamicRecordSizingDisabled: true}
	switch {
	case tg.pinSHA256 != "":
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = tg.verifyPin
	case tg.insecure:
		conf.InsecureSkipVerify = true
	}
	return conf
}

func (tg *target) verifyPin(state tls.ConnectionState) error {
	var others int
	for _, cert := range state.PeerCertificates {
		if strings.HasPrefix(cert.Subject.CommonName, derpconst.MetaCertCommonNamePrefix) {
			continue
		}
		others++
		if sum := sha256.Sum256(cert.Raw); hex.EncodeToString(sum[:]) != tg.pinSHA256 {
			return errors.New("the leaf is not the pinned certificate")
		}
	}
	if others != 1 {
		return fmt.Errorf("%d certificates besides the meta certificate, a pinning client wants 1", others)
	}
	return nil
}

// dialTCP connects with a receive buffer of the given size; zero leaves the
// system's choice.
func (tg *target) dialTCP(receiveBufferBytes int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	if receiveBufferBytes > 0 {
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			var inner error
			err := raw.Control(func(fd uintptr) {
				inner = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBufferBytes)
			})
			return errors.Join(err, inner)
		}
	}
	c, err := d.Dial("tcp", tg.addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (tg *target) dialTLS(conf *tls.Config, receiveBufferBytes int) (*tls.Conn, error) {
	tcp, err := tg.dialTCP(receiveBufferBytes)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn := tls.Client(tcp, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		tcp.Close()
		return nil, err
	}
	return conn, nil
}

// learnServerKey reads the key out of one upgrade, before any case runs.
func (tg *target) learnServerKey() error {
	conn, err := tg.dialTLS(tg.tlsConfig(), 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(dialTimeout))
	if _, err := conn.Write(upgradeHead(tg, "Derp-Fast-Start: 1")); err != nil {
		return err
	}
	tg.serverKey, err = readServerKey(bufio.NewReader(conn))
	return err
}

// httpClient asks over TLS without following redirects; every request uses a
// fresh connection, as probing clients do.
func (tg *target) httpClient() *http.Client {
	return &http.Client{
		Timeout: dialTimeout,
		Transport: &http.Transport{
			TLSClientConfig:   tg.tlsConfig(),
			DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				return tg.dialTCP(0)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (tg *target) hostPort() string { return net.JoinHostPort(tg.host, strconv.Itoa(tg.port)) }

// node describes the server as an entry of a DERP map for stock clients.
func (tg *target) node() *tailcfg.DERPNode {
	n := &tailcfg.DERPNode{
		Name: "1a", RegionID: 1, HostName: tg.host, DERPPort: tg.port,
		IPv4: "none", IPv6: "none", STUNPort: -1,
		InsecureForTests: tg.insecure && tg.pinSHA256 == "",
	}
	if tg.pinSHA256 != "" {
		n.CertName = "sha256-raw:" + tg.pinSHA256
	}
	if tg.addr.Addr().Is4() {
		n.IPv4 = tg.addr.Addr().String()
	} else {
		n.IPv6 = tg.addr.Addr().String()
	}
	return n
}
