// Cases about idle connections. A stock client gives up on a server that is
// silent for 120 s.
package main

import (
	"time"

	"tailscale.com/derp"
)

const (
	keepAliveEarliest = 55 * time.Second
	keepAliveLatest   = 70 * time.Second
)

func init() {
	register(
		caseSpec{name: "keepalive_comes_between_55_and_70_s", slow: true, run: keepAliveComes},
		caseSpec{name: "keepalive_comes_over_websocket", slow: true, run: keepAliveOverWebSocket},
		caseSpec{name: "keepalive_reaches_a_stock_client", slow: true, run: keepAliveOfStockClient},
		caseSpec{name: "keepalives_of_many_clients_are_spread", slow: true, run: keepAlivesSpread},
	)
}

// wantKeepAlive returns how long the server stayed silent.
func (s *session) wantKeepAlive() time.Duration {
	started := time.Now()
	s.conn.SetReadDeadline(started.Add(keepAliveLatest))
	f, err := readFrame(s.br)
	s.t.check(err, "waiting for KeepAlive")
	took := time.Since(started)
	if f.typ != derp.FrameKeepAlive || len(f.payload) != 0 {
		s.t.failf("got %v after %v, want KeepAlive", f, took)
	}
	if took < keepAliveEarliest {
		s.t.failf("KeepAlive came after %v", took)
	}
	return took
}

func keepAliveComes(t *T) {
	s := t.join()
	s.wantKeepAlive()
	s.wantAlive()
}

func keepAliveOverWebSocket(t *T) {
	s, _ := t.wsJoin(0, false)
	s.wantKeepAlive()
	s.wantAlive()
}

func keepAliveOfStockClient(t *T) {
	c := t.stock()
	late := time.AfterFunc(keepAliveLatest, func() { c.Close() })
	defer late.Stop()
	m, err := c.Recv()
	t.check(err, "a stock client waiting for KeepAlive")
	if _, ok := m.(derp.KeepAliveMessage); !ok {
		t.failf("a stock client got %#v, want KeepAliveMessage", m)
	}
}

// keepAlivesSpread wants the jitter: clients that came back together after a
// restart must not all be written to in one moment, once a minute.
func keepAlivesSpread(t *T) {
	const clients = 20
	silences := make(chan time.Duration, clients)
	var parts []func()
	for range clients {
		s := t.join()
		parts = append(parts, func() { silences <- s.wantKeepAlive() })
	}
	t.gather(parts...)
	shortest, longest := keepAliveLatest, time.Duration(0)
	for range clients {
		silence := <-silences
		shortest, longest = min(shortest, silence), max(longest, silence)
	}
	if longest-shortest < time.Second {
		t.failf("the keepalives of %d clients came within %v of each other", clients, longest-shortest)
	}
}
