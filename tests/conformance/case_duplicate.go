// Cases about several connections with one key: the one heard from last is
// active, and the key is gone only with the last of them.
package main

import (
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// resendEvery paces packets that wait for a change inside the server that no
// frame announces, such as the departure of one connection of several.
const resendEvery = 5 * time.Millisecond

func init() {
	register(
		caseSpec{name: "duplicate_key_newest_is_active", run: newestIsActive},
		caseSpec{name: "duplicate_key_active_after_ping", run: func(t *T) { t.activeAfter((*session).wantAlive) }},
		caseSpec{name: "duplicate_key_active_after_packet", run: func(t *T) { t.activeAfter(sendsToItself) }},
		caseSpec{name: "duplicate_key_active_after_unknown_frame", run: func(t *T) { t.activeAfter(sendsUnknownFrame) }},
		caseSpec{name: "duplicate_key_other_takes_over_when_one_goes", run: otherTakesOver},
		caseSpec{name: "duplicate_key_one_of_three_goes", run: oneOfThreeGoes},
		caseSpec{name: "duplicate_key_gone_only_with_the_last", run: goneOnlyWithLast},
	)
}

func (t *T) twins() (older, newer *session) {
	private := key.NewNode()
	older = t.joinWith(joinOptions{private: private})
	newer = t.joinWith(joinOptions{private: private})
	return older, newer
}

func newestIsActive(t *T) {
	older, newer := t.twins()
	sender := t.join()
	for range 5 {
		packet := randomBytes(100)
		sender.sendPacket(newer.public, packet)
		newer.wantPacket(sender.public, packet)
	}
	// Reading on is no activity; only now the older one speaks, and nothing
	// may have been waiting for it.
	older.wantQuiet()
}

// activeAfter makes the older connection speak and expects packets to follow
// whoever spoke last, there and back.
func (t *T) activeAfter(speak func(*session)) {
	older, newer := t.twins()
	sender := t.join()
	for range 3 {
		for _, active := range []*session{older, newer} {
			speak(active)
			packet := randomBytes(100)
			sender.sendPacket(active.public, packet)
			active.wantPacket(sender.public, packet)
		}
	}
}

func sendsToItself(s *session) {
	packet := randomBytes(10)
	s.sendPacket(s.public, packet)
	s.wantPacket(s.public, packet)
}

// sendsUnknownFrame adds a packet to a third party, whose arrival shows that
// the server has read the frame before it.
func sendsUnknownFrame(s *session) {
	other := s.t.join()
	s.send(0xee, []byte("x"))
	s.sendPacket(other.public, []byte("after it"))
	other.wantPacket(s.public, []byte("after it"))
	other.close()
}

// repeat writes the same bytes again and again until stop is closed.
func (s *session) repeat(b []byte, stop <-chan struct{}) {
	tick := time.NewTicker(resendEvery)
	defer tick.Stop()
	for {
		s.write(b)
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// wantEventually repeats a packet until the receiver has one; earlier ones
// went to a connection that the server did not know to be gone.
func (s *session) wantEventually(sender *session) {
	packet := randomBytes(50)
	arrived := make(chan struct{})
	s.t.gather(
		func() { sender.repeat(packetFrame(s.public, packet), arrived) },
		func() {
			defer close(arrived)
			s.wantPacket(sender.public, packet)
		},
	)
	// Repetitions that were under way come now, before the fence.
	for _, f := range s.fence() {
		if !f.equal(frame{derp.FrameRecvPacket, append(sender.public.AppendTo(nil), packet...)}) {
			s.t.failf("got %v among the repetitions of one packet", f)
		}
	}
}

func otherTakesOver(t *T) {
	for _, leavingIsNewer := range []bool{true, false} {
		older, newer := t.twins()
		sender := t.join()
		leaving, staying := newer, older
		if !leavingIsNewer {
			leaving, staying = older, newer
			older.wantAlive()
		}
		leaving.close()
		staying.wantEventually(sender)
	}
}

func oneOfThreeGoes(t *T) {
	older, newer := t.twins()
	newest := t.joinWith(joinOptions{private: newer.private})
	sender := t.join()
	newest.close()
	newer.wantAlive()
	newer.wantEventually(sender)
	newer.close()
	older.wantEventually(sender)
}

func goneOnlyWithLast(t *T) {
	older, newer := t.twins()
	watcher := t.join()
	for _, twin := range []*session{older, newer} {
		twin.sendPacket(watcher.public, []byte("here"))
		watcher.wantPacket(twin.public, []byte("here"))
	}
	newer.close()
	older.wantEventually(watcher)
	watcher.wantQuiet()
	older.close()
	watcher.wantGone(older.public, derp.PeerGoneReasonDisconnected)
	watcher.wantQuiet()
}
