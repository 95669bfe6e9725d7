// Cases about PeerGone: who is told of a departure, and who of a destination
// that is not here.
package main

import (
	"crypto/tls"
	"net"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// notHereBurst is how many answers a client gets at once before it is limited
// to one a second.
const notHereBurst = 3

// discoMagic and discoBytesMin tell a packet that looks like disco.
const (
	discoMagic    = "TS\xf0\x9f\x92\xac"
	discoBytesMin = 62
)

func init() {
	register(
		caseSpec{name: "peer_gone_reaches_every_receiver", run: goneReachesReceivers},
		caseSpec{name: "peer_gone_does_not_reach_strangers", run: goneSparesStrangers},
		caseSpec{name: "peer_gone_comes_for_every_kind_of_departure", run: goneForEveryDeparture},
		caseSpec{name: "peer_gone_comes_for_a_client_closed_by_the_server", run: goneAfterProtocolError},
		caseSpec{name: "peer_gone_reaches_a_stock_client", run: goneReachesStockClient},
		caseSpec{name: "not_here_answers_disco_with_burst_3", run: notHereBurstOfThree},
		caseSpec{name: "not_here_resumes_after_a_second", run: notHereResumes},
		caseSpec{name: "not_here_is_silent_for_other_packets", run: notHereSilent},
		caseSpec{name: "not_here_limit_is_per_client", run: notHereLimitPerClient},
		caseSpec{name: "disco_packets_reach_a_known_peer", run: discoReachesPeer},
	)
}

func discoPacket(length int) []byte {
	return append([]byte(discoMagic), randomBytes(length-len(discoMagic))...)
}

// introduce sends one packet, which makes the receiver a subscriber of the
// sender's departure.
func (s *session) introduce(to *session) {
	s.sendPacket(to.public, []byte("hello"))
	to.wantPacket(s.public, []byte("hello"))
}

func goneReachesReceivers(t *T) {
	leaving := t.join()
	receivers := []*session{t.join(), t.joinWith(joinOptions{httpUpgrade: true}), t.join()}
	for _, r := range receivers {
		leaving.introduce(r)
		leaving.introduce(r)
	}
	leaving.close()
	for _, r := range receivers {
		r.wantGone(leaving.public, derp.PeerGoneReasonDisconnected)
		r.wantQuiet()
	}
}

func goneSparesStrangers(t *T) {
	leaving, receiver, stranger, sender := t.join(), t.join(), t.join(), t.join()
	leaving.introduce(receiver)
	sender.introduce(leaving)
	leaving.close()
	receiver.wantGone(leaving.public, derp.PeerGoneReasonDisconnected)
	stranger.wantQuiet()
	sender.wantQuiet()
}

func goneForEveryDeparture(t *T) {
	for _, depart := range []func(*session){
		(*session).close,
		func(s *session) { t.check(s.conn.(*tls.Conn).CloseWrite(), "closing the TLS stream") },
		func(s *session) { t.check(s.tcp().CloseWrite(), "closing TCP without closing TLS") },
		func(s *session) {
			t.check(s.tcp().SetLinger(0), "asking for a reset")
			t.check(s.tcp().Close(), "resetting")
		},
	} {
		leaving, receiver := t.join(), t.join()
		leaving.introduce(receiver)
		depart(leaving)
		receiver.wantGone(leaving.public, derp.PeerGoneReasonDisconnected)
	}
}

func (s *session) tcp() *net.TCPConn { return s.conn.(*tls.Conn).NetConn().(*net.TCPConn) }

func goneAfterProtocolError(t *T) {
	leaving, receiver := t.join(), t.join()
	leaving.introduce(receiver)
	leaving.send(derp.FrameNotePreferred, nil)
	receiver.wantGone(leaving.public, derp.PeerGoneReasonDisconnected)
}

func goneReachesStockClient(t *T) {
	leaving, receiver := t.join(), t.stock()
	leaving.sendPacket(receiver.SelfPublicKey(), []byte("hello"))
	receiver.wantPacket(leaving.public, []byte("hello"))
	leaving.close()
	m := receiver.recv()
	gone, ok := m.(derp.PeerGoneMessage)
	if !ok || gone.Peer != leaving.public || gone.Reason != derp.PeerGoneReasonDisconnected {
		t.failf("a stock client got %#v, want PeerGoneMessage", m)
	}
}

func notHereBurstOfThree(t *T) {
	s := t.join()
	var all []byte
	var strangers []key.NodePublic
	for range 2 * notHereBurst {
		stranger := key.NewNode().Public()
		strangers = append(strangers, stranger)
		all = append(all, packetFrame(stranger, discoPacket(discoBytesMin))...)
	}
	s.write(all)
	// A server may answer from several threads, hence in any order.
	answered := map[key.NodePublic]bool{}
	for range notHereBurst {
		f := s.recv()
		if f.typ != derp.FramePeerGone || len(f.payload) != keyBytes+1 || f.payload[keyBytes] != byte(derp.PeerGoneReasonNotHere) {
			t.failf("got %v, want PeerGone for reason not here", f)
		}
		answered[publicFrom(f.payload)] = true
	}
	for _, stranger := range strangers[:notHereBurst] {
		if !answered[stranger] {
			t.failf("no PeerGone for %v, one of the first %d", stranger.ShortString(), notHereBurst)
		}
	}
	s.wantQuiet()
}

// notHereResumes keeps asking: with the burst used up, the next answer is due
// after about a second, and it is not due at once.
func notHereResumes(t *T) {
	s, stranger := t.join(), key.NewNode().Public()
	answers := make(chan struct{})
	t.gather(
		func() { s.repeat(packetFrame(stranger, discoPacket(100)), answers) },
		func() {
			defer close(answers)
			for range notHereBurst + 2 {
				s.wantGone(stranger, derp.PeerGoneReasonNotHere)
			}
		},
	)
}

func notHereSilent(t *T) {
	s, stranger := t.join(), key.NewNode().Public()
	almostMagic := discoPacket(100)
	almostMagic[5] ^= 1
	for _, packet := range [][]byte{nil, randomBytes(1), randomBytes(1400), discoPacket(discoBytesMin - 1), almostMagic} {
		s.sendPacket(stranger, packet)
	}
	s.wantQuiet()
}

func notHereLimitPerClient(t *T) {
	stranger := key.NewNode().Public()
	for _, s := range []*session{t.join(), t.join(), t.join()} {
		for range notHereBurst {
			s.sendPacket(stranger, discoPacket(200))
			s.wantGone(stranger, derp.PeerGoneReasonNotHere)
		}
	}
}

func discoReachesPeer(t *T) {
	a, b := t.join(), t.join()
	for _, length := range []int{discoBytesMin, 63, 260, 1200} {
		packet := discoPacket(length)
		a.sendPacket(b.public, packet)
		b.wantPacket(a.public, packet)
	}
}
