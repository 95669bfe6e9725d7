// Cases about a client that stops reading: it may lose packets or its
// connection, and nobody else may notice.
package main

import (
	"errors"
	"os"
	"time"

	"tailscale.com/derp"
)

const (
	// floodPackets of floodBytes are more than a server and two kernels may
	// keep for one client.
	floodPackets = 1500
	floodBytes   = 16_384
	// smallReceiveBytes makes the stopped client's kernel fill up early.
	smallReceiveBytes = 64 << 10
	// writeTimeout is derper's default: how long a client may not read.
	writeTimeout = 2 * time.Second
)

func init() {
	register(
		caseSpec{name: "stopped_reader_does_not_hold_up_a_third_party", run: stoppedReaderHarmless},
		caseSpec{name: "stopped_reader_resumes_with_the_newest_or_is_cut", run: stoppedReaderResumes},
		caseSpec{name: "stopped_reader_is_cut_after_the_write_timeout", run: stoppedReaderIsCut},
		caseSpec{name: "stopped_reader_can_still_send", run: stoppedReaderSends},
	)
}

// flooded is the scene of every case here: a client that has stopped reading,
// full to the brim, and two that have not noticed.
type flooded struct {
	sender, stopped, third *session
	// cut is set when the server gave the stopped client up during the flood,
	// which a busy machine may draw out beyond the write timeout.
	cut bool
	// longestGap is how long the third waited for one of its packets.
	longestGap time.Duration
}

// flood sends numbered packets to the stopped client, each followed by one to
// the third, which has to receive every single one in order. The third is told
// when the stopped one goes, because it had a packet from it before.
func (t *T) flood() *flooded {
	f := &flooded{sender: t.join(), third: t.join()}
	f.stopped = t.joinWith(joinOptions{receiveBufferBytes: smallReceiveBytes})
	f.stopped.introduce(f.third)
	window := make(chan struct{}, windowPackets-6)
	failed := make(chan struct{})
	t.gather(
		func() {
			large, small := make([]byte, floodBytes), make([]byte, 100)
			for i := range floodPackets {
				select {
				case window <- struct{}{}:
				case <-failed:
					return
				}
				numberPacket(large, i)
				numberPacket(small, i)
				f.sender.write(append(packetFrame(f.stopped.public, large), packetFrame(f.third.public, small)...))
			}
		},
		func() {
			defer close(failed)
			last := time.Now()
			for i := range floodPackets {
				f.wantNumbered(i)
				now := time.Now()
				f.longestGap = max(f.longestGap, now.Sub(last))
				last = now
				<-window
			}
		},
	)
	return f
}

// wantNumbered is the third's next packet, with room for one PeerGone.
func (f *flooded) wantNumbered(i int) {
	small := make([]byte, 100)
	numberPacket(small, i)
	got := f.third.recv()
	if !f.cut && got.isGone(f.stopped.public, derp.PeerGoneReasonDisconnected) {
		f.cut = true
		got = f.third.recv()
	}
	if !got.equal(frame{derp.FrameRecvPacket, append(f.sender.public.AppendTo(nil), small...)}) {
		f.third.t.failf("the third party got %v instead of packet %d", got, i)
	}
}

// stoppedReaderHarmless tells a server that waits for the stopped client, if
// only until it times out, from one that is merely short of CPU.
func stoppedReaderHarmless(t *T) {
	f := t.flood()
	if f.longestGap > writeTimeout*3/4 {
		t.failf("the third party waited %v for a packet", f.longestGap.Round(time.Millisecond))
	}
	f.sender.wantAlive()
	f.third.sendPacket(f.sender.public, []byte("and back"))
	f.sender.wantPacket(f.third.public, []byte("and back"))
}

// stoppedReaderResumes accepts both ends that derper has for it, depending on
// how much of the write timeout the flood has taken.
func stoppedReaderResumes(t *T) {
	f := t.flood()
	numbers, cut := f.stopped.drain(f.sender)
	for i := 1; i < len(numbers); i++ {
		if numbers[i] <= numbers[i-1] {
			t.failf("packet %d came after packet %d", numbers[i], numbers[i-1])
		}
	}
	if cut {
		return
	}
	if len(numbers) == floodPackets {
		t.failf("all %d packets of %d bytes were kept for a client that did not read", floodPackets, floodBytes)
	}
	if len(numbers) == 0 || numbers[len(numbers)-1] != floodPackets-1 {
		t.failf("the newest packet is not among the %d that were kept", len(numbers))
	}
	f.stopped.wantAlive()
}

// drain reads what was kept for the client, up to the end of the connection or
// to a packet of another length that is sent for this purpose.
func (s *session) drain(sender *session) (numbers []int, cut bool) {
	sender.sendPacket(s.public, []byte("the end"))
	for {
		f, err := s.tryRecv(patience)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.t.failf("the resumed client got %d packets, and then neither the end nor more", len(numbers))
		}
		if err != nil {
			return numbers, true
		}
		if f.typ != derp.FrameRecvPacket {
			continue
		}
		if len(f.payload) != keyBytes+floodBytes {
			return numbers, false
		}
		numbers = append(numbers, numberOf(f.payload[keyBytes:]))
	}
}

// stoppedReaderIsCut learns of the cut from PeerGone, because looking at the
// connection itself would be reading.
func stoppedReaderIsCut(t *T) {
	f := t.flood()
	if f.cut {
		return
	}
	stop := make(chan struct{})
	t.gather(
		func() { f.sender.repeat(packetFrame(f.stopped.public, make([]byte, floodBytes)), stop) },
		func() {
			defer close(stop)
			started := time.Now()
			f.third.wantGone(f.stopped.public, derp.PeerGoneReasonDisconnected)
			if took := time.Since(started); took > 4*writeTimeout {
				t.failf("a client that does not read was kept for %v", took)
			}
		},
	)
}

func stoppedReaderSends(t *T) {
	f := t.flood()
	if f.cut {
		return
	}
	// It may be cut at this very moment, so the write may fail; but either
	// its packet or the news of its end has to arrive.
	_ = f.stopped.tryWrite(packetFrame(f.third.public, []byte("still here")))
	got := f.third.recv()
	if got.typ != derp.FrameRecvPacket && !got.isGone(f.stopped.public, derp.PeerGoneReasonDisconnected) {
		t.failf("got %v from a client that stopped reading", got)
	}
}
