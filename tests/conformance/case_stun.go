// Cases about STUN. The requests of stock nodes and the exact answer are fixed
// by bytes; what is dropped is shown by the answer to the request behind it.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"tailscale.com/net/stun"
)

const (
	stunHeaderBytes      = 20
	stunFingerprintBytes = 8
	// stunTries repeats a request that a busy machine may have lost.
	stunTries   = 5
	stunTimeout = time.Second

	// stunVector is the request of a stock node with the transaction 00..0b.
	stunVector = "000100142112a442000102030405060708090a0b802200087461696c6e6f6465802800048aabad90"
)

func init() {
	register(
		caseSpec{name: "stun_request_of_stock_nodes_is_the_known_vector", run: stunRequestVector},
		caseSpec{name: "stun_answers_over_ipv4", run: func(t *T) { t.stunAnswers(false) }},
		caseSpec{name: "stun_answers_over_ipv6", run: func(t *T) { t.stunAnswers(true) }},
		caseSpec{name: "stun_answer_is_exact", run: stunAnswerIsExact},
		caseSpec{name: "stun_drops_what_does_not_parse", run: stunDropsGarbage},
		caseSpec{name: "stun_ignores_the_header_length", run: stunIgnoresHeaderLength},
		caseSpec{name: "stun_takes_extra_attributes", run: stunTakesExtraAttributes},
		caseSpec{name: "stun_answers_plain_rfc_5389_request", run: stunAnswersPlainRequest},
		caseSpec{name: "stun_answers_a_burst_each_with_its_own_transaction", run: stunBurst},
	)
}

// stunSocket is not connected, so that an answer from another address than the
// one asked is seen and not dropped by the kernel.
type stunSocket struct {
	t      *T
	conn   *net.UDPConn
	server netip.AddrPort
	// asked holds the requests already answered or given up: an answer to one
	// of them that comes late is no surprise.
	asked map[[12]byte]bool
}

func (t *T) stunSocket(server netip.AddrPort) *stunSocket {
	local := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	network := "udp4"
	if server.Addr().Is6() {
		local, network = &net.UDPAddr{IP: net.IPv6loopback}, "udp6"
	}
	if !server.Addr().IsLoopback() {
		local = nil
	}
	conn, err := net.ListenUDP(network, local)
	t.check(err, "opening a UDP socket")
	t.onEnd(func() { conn.Close() })
	return &stunSocket{t, conn, server, map[[12]byte]bool{}}
}

func (t *T) anyStun() *stunSocket {
	if len(t.target.stun) == 0 {
		t.skipf("no -stun-addr given")
	}
	return t.stunSocket(t.target.stun[0])
}

func (s *stunSocket) send(b []byte) {
	_, err := s.conn.WriteToUDPAddrPort(b, s.server)
	s.t.check(err, "sending %d bytes of UDP", len(b))
}

// recv returns the next datagram, or nil when none came in time.
func (s *stunSocket) recv() []byte {
	buffer := make([]byte, 2048)
	s.conn.SetReadDeadline(time.Now().Add(stunTimeout))
	n, from, err := s.conn.ReadFromUDPAddrPort(buffer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	s.t.check(err, "waiting for a STUN answer")
	if got := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); got != s.server {
		s.t.failf("asked %v, the answer came from %v", s.server, got)
	}
	return buffer[:n]
}

// roundTrip sends a request until its answer comes and checks all of it.
func (s *stunSocket) roundTrip(request []byte) {
	defer func() { s.asked[transactionOf(request)] = true }()
	for range stunTries {
		s.send(request)
		answer := s.recv()
		for len(answer) >= stunHeaderBytes && s.asked[transactionOf(answer)] {
			answer = s.recv()
		}
		if answer != nil {
			s.wantAnswer(request, answer)
			return
		}
	}
	s.t.failf("no answer to %d requests of %d bytes", stunTries, len(request))
}

func transactionOf(message []byte) [12]byte { return [12]byte(message[8:stunHeaderBytes]) }

// wantAnswer compares with the one answer there is: success, the same
// transaction, a single XOR-MAPPED-ADDRESS with our address.
func (s *stunSocket) wantAnswer(request, answer []byte) {
	local := s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if local.Addr().IsUnspecified() {
		_, mapped, err := stun.ParseResponse(answer)
		s.t.check(err, "parsing the answer")
		local = mapped
	}
	want := stunAnswer(transactionOf(request), local)
	if !bytes.Equal(answer, want) {
		s.t.failf("the answer is %x, want %x", answer, want)
	}
}

// stunAnswer builds the answer by hand from RFC 5389, section 15.2, because
// the stock client reads several forms and would not notice a longer one.
func stunAnswer(transaction [12]byte, mapped netip.AddrPort) []byte {
	const cookie = "\x21\x12\xa4\x42"
	address, family := mapped.Addr().Unmap().AsSlice(), byte(1)
	if len(address) == net.IPv6len {
		family = 2
	}
	b := []byte{0x01, 0x01, 0, byte(8 + len(address))}
	b = append(append(b, cookie...), transaction[:]...)
	b = append(b, 0x00, 0x20, 0, byte(4+len(address)), 0, family)
	b = binary.BigEndian.AppendUint16(b, mapped.Port()^0x2112)
	mask := append([]byte(cookie), transaction[:]...)
	for i := range address {
		b = append(b, address[i]^mask[i])
	}
	return b
}

func stunRequestVector(t *T) {
	var transaction stun.TxID
	for i := range transaction {
		transaction[i] = byte(i)
	}
	if got := hex.EncodeToString(stun.Request(transaction)); got != stunVector {
		t.failf("the stock package sends %s, this program was written for %s", got, stunVector)
	}
	for address, want := range map[string]string{
		"192.0.2.1:1025":     "0101000c2112a442000102030405060708090a0b0020000800012513e112a643",
		"[2001:db8::1]:1025": "010100182112a442000102030405060708090a0b00200014000225130113a9fa000102030405060708090a0a",
	} {
		if got := hex.EncodeToString(stunAnswer(transaction, netip.MustParseAddrPort(address))); got != want {
			t.failf("the expected answer for %s is %s, the known vector %s", address, got, want)
		}
	}
}

func (t *T) stunAnswers(v6 bool) {
	for _, server := range t.target.stun {
		if server.Addr().Is6() != v6 {
			continue
		}
		s := t.stunSocket(server)
		s.roundTrip(stun.Request(stun.NewTxID()))
		vector, err := hex.DecodeString(stunVector)
		t.check(err, "decoding a constant")
		s.roundTrip(vector)
		return
	}
	t.skipf("no -stun-addr of this family given")
}

func stunAnswerIsExact(t *T) {
	s := t.anyStun()
	for _, fill := range []byte{0x00, 0xff, 0x21} {
		var transaction stun.TxID
		copy(transaction[:], bytes.Repeat([]byte{fill}, len(transaction)))
		s.roundTrip(stun.Request(transaction))
	}
}

// withFingerprint ends a request with the checksum of all before it.
func withFingerprint(b []byte) []byte {
	sum := crc32.ChecksumIEEE(b) ^ 0x5354554e
	return binary.BigEndian.AppendUint32(append(b, 0x80, 0x28, 0, 4), sum)
}

// stunRequest builds a request with the given attributes and a fingerprint;
// delta falsifies the length in the header.
func stunRequest(delta int, attributes ...string) []byte {
	body := strings.Join(attributes, "")
	b := []byte{0x00, 0x01}
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)+stunFingerprintBytes+delta))
	b = append(b, 0x21, 0x12, 0xa4, 0x42)
	b = append(b, randomBytes(12)...)
	return withFingerprint(append(b, body...))
}

const (
	attributeSoftware = "\x80\x22\x00\x08tailnode"
	attributePriority = "\x00\x24\x00\x04\x00\x00\x00\x01"
	attributePadded   = "\x80\x23\x00\x05extra\x00\x00\x00"
)

func stunDropsGarbage(t *T) {
	s := t.anyStun()
	good := stun.Request(stun.NewTxID())
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for _, junk := range [][]byte{
		{},
		{0},
		good[:19],
		good[:stunHeaderBytes+3],
		good[:len(good)-1],
		append(bytes.Clone(good), 0),
		append(bytes.Clone(good), 0, 0, 0, 0),
		change(0, 0x40),
		change(0, 0x80),
		change(0, 0x01),
		change(1, 0x11),
		change(4, 0x22),
		change(len(good)-1, good[len(good)-1]^1),
		change(23, 9),
		change(22, 0xff),
		stunRequest(0, "\x80\x22\x00\x08tailnobe")[:36],
		randomBytes(40),
		randomBytes(1400),
	} {
		fence := stun.Request(stun.NewTxID())
		s.send(junk)
		s.roundTrip(fence)
	}
}

func stunIgnoresHeaderLength(t *T) {
	s := t.anyStun()
	for _, delta := range []int{-20, -1, 1, 4, 100} {
		s.roundTrip(stunRequest(delta, attributeSoftware))
	}
}

func stunTakesExtraAttributes(t *T) {
	s := t.anyStun()
	s.roundTrip(stunRequest(0, attributeSoftware, attributePriority))
	s.roundTrip(stunRequest(0, attributePadded, attributeSoftware))
	s.roundTrip(stunRequest(0, attributeSoftware, strings.Repeat(attributePadded, 20)))
}

func stunAnswersPlainRequest(t *T) {
	s := t.anyStun()
	if t.target.stock {
		t.skipf("stock derper answers Tailscale's own requests only")
	}
	bare := append([]byte{0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xa4, 0x42}, randomBytes(12)...)
	s.roundTrip(bare)
	named := append([]byte{0x00, 0x01, 0x00, 0x0c, 0x21, 0x12, 0xa4, 0x42}, randomBytes(12)...)
	s.roundTrip(append(named, "\x80\x22\x00\x08somebody"...))
}

// stunBurst keeps fewer requests in flight than a limit per source may allow.
func stunBurst(t *T) {
	s := t.anyStun()
	const burst = 10
	for try := range stunTries {
		missing := map[stun.TxID]bool{}
		for range burst {
			transaction := stun.NewTxID()
			missing[transaction] = true
			s.send(stun.Request(transaction))
		}
		for answer := s.recv(); answer != nil; answer = s.recv() {
			transaction, _, err := stun.ParseResponse(answer)
			t.check(err, "parsing an answer")
			delete(missing, transaction)
			if len(missing) == 0 {
				return
			}
		}
		if try == stunTries-1 {
			t.failf("%d of %d requests stay without an answer", len(missing), burst)
		}
	}
}
