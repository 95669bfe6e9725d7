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
	floodPackets = 3000
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

// flood sends numbered packets to the stopped client, each followed by one to
// the third, which has to receive every single one in order.
func (t *T) flood(sender, stopped, third *session) {
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
				sender.write(append(packetFrame(stopped.public, large), packetFrame(third.public, small)...))
			}
		},
		func() {
			defer close(failed)
			small := make([]byte, 100)
			for i := range floodPackets {
				numberPacket(small, i)
				third.wantPacket(sender.public, small)
				<-window
			}
		},
	)
}

func (t *T) floodThree() (sender, stopped, third *session) {
	sender, third = t.join(), t.join()
	stopped = t.joinWith(joinOptions{receiveBufferBytes: smallReceiveBytes})
	stopped.introduce(third)
	t.flood(sender, stopped, third)
	return sender, stopped, third
}

func stoppedReaderHarmless(t *T) {
	sender, _, third := t.floodThree()
	sender.introduce(third)
	sender.wantAlive()
}

// stoppedReaderResumes accepts both ends that derper has for it, depending on
// how much of the write timeout the flood has taken.
func stoppedReaderResumes(t *T) {
	sender, stopped, _ := t.floodThree()
	numbers, cut := stopped.drain(sender)
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
	stopped.wantAlive()
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
	sender, stopped, third := t.floodThree()
	stop := make(chan struct{})
	t.gather(
		func() { sender.repeat(packetFrame(stopped.public, make([]byte, floodBytes)), stop) },
		func() {
			defer close(stop)
			started := time.Now()
			third.wantGone(stopped.public, derp.PeerGoneReasonDisconnected)
			if took := time.Since(started); took > 4*writeTimeout {
				t.failf("a client that does not read was kept for %v", took)
			}
		},
	)
}

func stoppedReaderSends(t *T) {
	_, stopped, third := t.floodThree()
	// It may have been cut already, which is allowed, so the write may fail;
	// but either its packet or the news of its end has to arrive.
	_ = stopped.tryWrite(packetFrame(third.public, []byte("still here")))
	f := third.recv()
	if f.typ != derp.FrameRecvPacket && !f.isGone(stopped.public, derp.PeerGoneReasonDisconnected) {
		t.failf("got %v from a client that stopped reading", f)
	}
}
