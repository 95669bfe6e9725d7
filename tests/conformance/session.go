// A session is a hand-written DERP client over TLS: it can send what no stock
// client would. It owns framing, the key exchange and the expectations that
// cases state about received frames. It must never retry or reconnect.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	headerBytes = 5
	keyBytes    = 32
	// frameBytesMax is where a stock client gives up on its server.
	frameBytesMax = 1 << 20
	// packetBytesMax is the largest payload a server has to relay.
	packetBytesMax = 65_536
	// patience is how long a case waits for anything that has to come soon.
	patience = 10 * time.Second
	// refusalMax is how long a server may take to close on what it does not
	// accept: well before the 10 s after which it cuts a client that has not
	// introduced itself, so that the cut cannot pass for a refusal.
	refusalMax = 5 * time.Second
)

// stockInfo is the ClientInfo document a stock client sends.
const stockInfo = `{"version":2,"CanAckPings":true}`

type frame struct {
	typ     derp.FrameType
	payload []byte
}

type session struct {
	t       *T
	private key.NodePrivate
	public  key.NodePublic
	conn    net.Conn
	br      *bufio.Reader
}

// joinOptions change how join connects; the zero value is what a stock client
// does, with a new key.
type joinOptions struct {
	private            key.NodePrivate
	httpUpgrade        bool // wait for the 101 instead of fast start
	receiveBufferBytes int
	configureTLS       func(*tls.Config)
	info               string
	headers            []string
}

// join connects and completes the exchange of keys and ServerInfo.
func (t *T) join() *session { return t.joinWith(joinOptions{}) }

func (t *T) joinWith(o joinOptions) *session {
	s := t.open(o)
	s.sendInfo(infoOf(o))
	s.wantServerInfo()
	return s
}

func infoOf(o joinOptions) string {
	if o.info != "" {
		return o.info
	}
	return stockInfo
}

// open connects and upgrades, up to and including the server's key; what the
// client says first is left to the case.
func (t *T) open(o joinOptions) *session {
	conf := t.target.tlsConfig()
	if o.configureTLS != nil {
		o.configureTLS(conf)
	}
	conn, err := t.target.dialTLS(conf, o.receiveBufferBytes)
	t.check(err, "connecting")
	s := t.sessionOver(conn, o.private)
	headers := o.headers
	if !o.httpUpgrade {
		headers = append([]string{"Derp-Fast-Start: 1"}, headers...)
	}
	s.write(upgradeHead(t.target, headers...))
	if o.httpUpgrade {
		s.readHead("101")
	}
	s.wantServerKey()
	return s
}

// sessionOver wraps a connection that a case made itself. A zero key stands
// for a new one.
func (t *T) sessionOver(conn net.Conn, private key.NodePrivate) *session {
	t.onEnd(func() { conn.Close() })
	if private.IsZero() {
		private = key.NewNode()
	}
	return &session{t: t, private: private, public: private.Public(), conn: conn, br: bufio.NewReader(conn)}
}

// upgradeHead is the request as a stock client writes it, plus header lines.
func upgradeHead(tg *target, headers ...string) []byte {
	lines := []string{
		"GET /derp HTTP/1.1", "Host: " + tg.hostPort(), "User-Agent: Go-http-client/1.1",
		"Connection: Upgrade", "Upgrade: DERP",
	}
	return []byte(strings.Join(append(lines, headers...), "\r\n") + "\r\n\r\n")
}

// readHead reads one HTTP reply head and returns it with its line ends.
func (s *session) readHead(status string) string {
	s.conn.SetReadDeadline(time.Now().Add(patience))
	var head strings.Builder
	for !strings.HasSuffix(head.String(), "\r\n\r\n") {
		b, err := s.br.ReadByte()
		s.t.check(err, "reading an HTTP head after %q", head.String())
		head.WriteByte(b)
	}
	if first, _, _ := strings.Cut(head.String(), "\r\n"); !strings.HasPrefix(first, "HTTP/1.1 "+status) {
		s.t.failf("the reply is %q, want status %s", first, status)
	}
	return head.String()
}

func readFrame(br *bufio.Reader) (frame, error) {
	var header [headerBytes]byte
	if _, err := io.ReadFull(br, header[:]); err != nil {
		return frame{}, err
	}
	length := binary.BigEndian.Uint32(header[1:])
	if length > frameBytesMax {
		return frame{}, fmt.Errorf("frame of type %#02x announces %d bytes, a stock client stops at %d", header[0], length, frameBytesMax)
	}
	payload := make([]byte, length)
	_, err := io.ReadFull(br, payload)
	return frame{derp.FrameType(header[0]), payload}, err
}

func readServerKey(br *bufio.Reader) (key.NodePublic, error) {
	f, err := readFrame(br)
	if err != nil {
		return key.NodePublic{}, err
	}
	if f.typ != derp.FrameServerKey || len(f.payload) < len(derp.Magic)+keyBytes || !bytes.HasPrefix(f.payload, []byte(derp.Magic)) {
		return key.NodePublic{}, fmt.Errorf("the first frame is %v, want ServerKey", f)
	}
	return publicFrom(f.payload[len(derp.Magic):]), nil
}

func publicFrom(b []byte) key.NodePublic { return key.NodePublicFromRaw32(mem.B(b[:keyBytes])) }

func (f frame) String() string {
	return fmt.Sprintf("frame type %#02x with %d bytes", byte(f.typ), len(f.payload))
}

func frameBytes(typ derp.FrameType, payload []byte) []byte {
	b := make([]byte, 0, headerBytes+len(payload))
	b = append(b, byte(typ))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func packetFrame(to key.NodePublic, packet []byte) []byte {
	return frameBytes(derp.FrameSendPacket, append(to.AppendTo(nil), packet...))
}

// infoPayload seals a ClientInfo document for the server.
func (s *session) infoPayload(document string) []byte {
	return append(s.public.AppendTo(nil), s.private.SealTo(s.t.target.serverKey, []byte(document))...)
}

func (s *session) sendInfo(document string) {
	s.send(derp.FrameClientInfo, s.infoPayload(document))
}

func (s *session) write(b []byte) {
	s.t.check(s.tryWrite(b), "writing %d bytes", len(b))
}

// tryWrite is for bytes that the server is expected to refuse half way.
func (s *session) tryWrite(b []byte) error {
	s.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := s.conn.Write(b)
	return err
}

func (s *session) send(typ derp.FrameType, payload []byte)     { s.write(frameBytes(typ, payload)) }
func (s *session) sendPacket(to key.NodePublic, packet []byte) { s.write(packetFrame(to, packet)) }
func (s *session) close()                                      { s.conn.Close() }

// recv returns the next frame that is not a KeepAlive: one of those may come
// at any time and means nothing to a case.
func (s *session) recv() frame {
	f, err := s.tryRecv(patience)
	s.t.check(err, "waiting for a frame")
	return f
}

func (s *session) tryRecv(wait time.Duration) (frame, error) {
	s.conn.SetReadDeadline(time.Now().Add(wait))
	for {
		f, err := readFrame(s.br)
		if err != nil || f.typ != derp.FrameKeepAlive {
			return f, err
		}
	}
}

func (s *session) wantServerKey() {
	s.conn.SetReadDeadline(time.Now().Add(patience))
	got, err := readServerKey(s.br)
	s.t.check(err, "waiting for ServerKey")
	if got != s.t.target.serverKey {
		s.t.failf("the server's key is %v, it was %v before", got, s.t.target.serverKey)
	}
}

func (s *session) wantServerInfo() derp.ServerInfo {
	f := s.recv()
	if f.typ != derp.FrameServerInfo {
		s.t.failf("got %v, want ServerInfo", f)
	}
	document, ok := s.private.OpenFrom(s.t.target.serverKey, f.payload)
	if !ok {
		s.t.failf("ServerInfo does not open with the server's key")
	}
	var info derp.ServerInfo
	s.t.check(json.Unmarshal(document, &info), "ServerInfo %q", document)
	if info.Version != 2 {
		s.t.failf("ServerInfo %q, want version 2", document)
	}
	return info
}

func (s *session) wantPacket(from key.NodePublic, packet []byte) {
	f := s.recv()
	if f.typ != derp.FrameRecvPacket || len(f.payload) < keyBytes {
		s.t.failf("got %v, want a packet of %d bytes", f, len(packet))
	}
	if got := publicFrom(f.payload); got != from {
		s.t.failf("the packet names %v as its source, want %v", got.ShortString(), from.ShortString())
	}
	if !bytes.Equal(f.payload[keyBytes:], packet) {
		s.t.failf("a packet of %d bytes arrived as different %d bytes", len(packet), len(f.payload)-keyBytes)
	}
}

func (s *session) wantPong(data []byte) {
	f := s.recv()
	if f.typ != derp.FramePong || !bytes.Equal(f.payload, data) {
		s.t.failf("got %v %x, want Pong %x", f, f.payload[:min(len(f.payload), 64)], data)
	}
}

func (s *session) wantGone(peer key.NodePublic, reason derp.PeerGoneReasonType) {
	f := s.recv()
	if !f.isGone(peer, reason) {
		s.t.failf("got %v, want PeerGone of %v for reason %d", f, peer.ShortString(), reason)
	}
}

func (f frame) isGone(peer key.NodePublic, reason derp.PeerGoneReasonType) bool {
	return f.typ == derp.FramePeerGone && bytes.Equal(f.payload, append(peer.AppendTo(nil), byte(reason)))
}

// fence returns every frame that comes before the echo of a packet to
// ourselves and of a ping. Both are needed: packets and pongs may pass each
// other in a server's queues.
func (s *session) fence() (before []frame) {
	marker := randomBytes(16)
	s.sendPacket(s.public, marker)
	s.send(derp.FramePing, marker[:8])
	echo := frame{derp.FrameRecvPacket, append(s.public.AppendTo(nil), marker...)}
	pong := frame{derp.FramePong, marker[:8]}
	for missing := 2; missing > 0; {
		switch f := s.recv(); {
		case f.equal(echo), f.equal(pong):
			missing--
		default:
			before = append(before, f)
		}
	}
	return before
}

func (f frame) equal(other frame) bool {
	return f.typ == other.typ && bytes.Equal(f.payload, other.payload)
}

// wantQuiet states that nothing was under way to this client. Several rounds
// give a server that answers from another thread the time to be caught.
func (s *session) wantQuiet() {
	for range 3 {
		if before := s.fence(); len(before) > 0 {
			s.t.failf("got %v where nothing was to come", before[0])
		}
	}
}

// wantAlive states that the server still serves this connection.
func (s *session) wantAlive() {
	data := randomBytes(8)
	s.send(derp.FramePing, data)
	s.wantPong(data)
}

// wantClosed reads until the server ends the connection, in whatever way, as
// long as it does so for what it was sent and not because time has passed.
func (s *session) wantClosed() {
	s.wantClosedWithin(0, refusalMax)
}

func (s *session) wantClosedWithin(earliest, latest time.Duration) {
	started := time.Now()
	s.conn.SetReadDeadline(started.Add(latest))
	for {
		f, err := readFrame(s.br)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.failf("the connection is still open after %v", latest)
		}
		if err != nil {
			break
		}
		if f.typ == derp.FrameServerInfo || f.typ == derp.FrameRecvPacket {
			s.t.failf("got %v, want the connection closed", f)
		}
	}
	if took := time.Since(started); took < earliest {
		s.t.failf("closed after %v, want %v at the earliest", took.Round(time.Millisecond), earliest)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // It never fails: the package ends the process instead.
	return b
}

// isReset tells the ways in which a peer closes hard from a real failure.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// wantEnd reads raw bytes until the server ends the connection, for a case
// that has left the protocol.
func (s *session) wantEnd() {
	s.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, s.br); errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.failf("the connection is still open after %v", patience)
	}
}
