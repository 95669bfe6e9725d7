// Stock clients: derphttp as shipped, pointed at the target. This file owns
// their set-up and the shape of their received messages. It must never reach
// below the public packages: what they reject, a real node rejects.
package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

func init() {
	// A node marks its sockets so that they bypass its own tunnel. There is
	// no tunnel here, and marking needs rights that a test run lacks.
	netns.SetEnabled(false)
}

// stockClient is one connected derphttp client whose ServerInfo was read.
type stockClient struct {
	*derphttp.Client
	t *T
}

func (t *T) stock() *stockClient { return t.stockClient(false) }

func (t *T) stockClient(prober bool) *stockClient {
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "here", Nodes: []*tailcfg.DERPNode{t.target.node()}}
	c := derphttp.NewRegionClient(key.NewNode(), logger.Discard, netmon.NewStatic(), func() *tailcfg.DERPRegion { return region })
	c.IsProber = prober
	t.onEnd(func() { c.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	t.check(c.Connect(ctx), "connecting a stock client")
	s := &stockClient{c, t}
	if m := s.recv(); !isServerInfo(m) {
		t.failf("the first message to a stock client is %T, want ServerInfoMessage", m)
	}
	return s
}

func isServerInfo(m derp.ReceivedMessage) bool { _, ok := m.(derp.ServerInfoMessage); return ok }

// recv ends the client when nothing comes in time: its own deadline of two
// minutes is too long for a case.
func (s *stockClient) recv() derp.ReceivedMessage {
	late := time.AfterFunc(patience, func() { s.Close() })
	defer late.Stop()
	for {
		m, err := s.Recv()
		s.t.check(err, "a stock client waiting for a message")
		if _, keepAlive := m.(derp.KeepAliveMessage); !keepAlive {
			return m
		}
	}
}

func (s *stockClient) send(to key.NodePublic, packet []byte) {
	s.t.check(s.Send(to, packet), "a stock client sending %d bytes", len(packet))
}

func (s *stockClient) wantPacket(from key.NodePublic, packet []byte) {
	got, ok := s.recv().(derp.ReceivedPacket)
	if !ok || got.Source != from || !bytes.Equal(got.Data, packet) {
		s.t.failf("a stock client got %s, want %d bytes from %v", describe(got), len(packet), from.ShortString())
	}
}

func describe(p derp.ReceivedPacket) string {
	return fmt.Sprintf("%d bytes from %v", len(p.Data), p.Source.ShortString())
}
