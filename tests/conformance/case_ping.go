// Cases about Ping and Pong.
package main

import (
	"bytes"
	"context"

	"tailscale.com/derp"
)

func init() {
	register(
		caseSpec{name: "ping_is_answered_with_its_first_8_bytes", run: pingEcho},
		caseSpec{name: "ping_of_a_stock_client_is_answered", run: pingOfStockClient},
		caseSpec{name: "ping_of_wrong_length_closes", run: pingOfWrongLength},
		caseSpec{name: "pong_from_client_is_ignored", run: pongIgnored},
		caseSpec{name: "ping_is_answered_between_packets", run: pingBetweenPackets},
	)
}

func pingEcho(t *T) {
	s := t.join()
	for _, length := range []int{8, 9, 100, 999, 1000} {
		data := randomBytes(length)
		s.send(derp.FramePing, data)
		s.wantPong(data[:8])
	}
	s.wantQuiet()
}

func pingOfStockClient(t *T) {
	c := t.stock()
	// Ping waits for a pong that only a reading client hears.
	go func() {
		for {
			if _, err := c.Recv(); err != nil {
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	t.check(c.Ping(ctx), "pinging with a stock client")
}

func pingOfWrongLength(t *T) {
	for _, length := range []int{0, 1, 7, 1001, 4096} {
		s := t.join()
		_ = s.tryWrite(frameBytes(derp.FramePing, make([]byte, length)))
		s.wantClosed()
	}
}

func pongIgnored(t *T) {
	s := t.join()
	for _, length := range []int{0, 7, 8, 9, 2000} {
		s.send(derp.FramePong, make([]byte, length))
	}
	s.wantQuiet()
}

// pingBetweenPackets looks for one pong somewhere among packets: where is up
// to the server, but each ping has to bring its own.
func pingBetweenPackets(t *T) {
	a, b := t.join(), t.join()
	for round := range 50 {
		data, packet := randomBytes(8), bytes.Repeat([]byte{byte(round)}, 1200)
		b.send(derp.FramePing, data)
		a.sendPacket(b.public, packet)
		pong, arrived := frame{derp.FramePong, data}, frame{derp.FrameRecvPacket, append(a.public.AppendTo(nil), packet...)}
		first, second := b.recv(), b.recv()
		if !(first.equal(pong) && second.equal(arrived)) && !(first.equal(arrived) && second.equal(pong)) {
			t.failf("got %v and %v, want one packet and one pong", first, second)
		}
	}
}
