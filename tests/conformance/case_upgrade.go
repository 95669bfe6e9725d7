// Cases about the step from HTTP to DERP: the reply's exact bytes, fast start,
// and requests that arrive in pieces or ahead of themselves.
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register(
		caseSpec{name: "upgrade_reply_is_exact_and_followed_by_server_key", run: upgradeReplyIsExact},
		caseSpec{name: "upgrade_fast_start_sends_no_http", run: fastStartSendsNoHTTP},
		caseSpec{name: "upgrade_fast_start_needs_value_one", run: fastStartNeedsValueOne},
		caseSpec{name: "upgrade_takes_head_byte_by_byte", run: takesHeadByteByByte},
		caseSpec{name: "upgrade_takes_client_info_in_the_same_record", run: takesClientInfoInSameRecord},
		caseSpec{name: "upgrade_takes_packets_in_the_same_record", run: takesPacketsInSameRecord},
		caseSpec{name: "upgrade_after_another_request_on_one_connection", run: upgradeAfterKeepAlive},
		caseSpec{name: "upgrade_header_is_case_insensitive", run: upgradeHeaderCase},
		caseSpec{name: "upgrade_websocket_without_subprotocol_is_raw", run: websocketWithoutSubprotocolIsRaw},
		caseSpec{name: "upgrade_accepts_any_method_host_and_origin", run: upgradeAcceptsAnyMethod},
		caseSpec{name: "upgrade_accepts_ideal_node", run: upgradeAcceptsIdealNode},
		caseSpec{name: "stock_clients_exchange_packets", run: stockClientsExchange},
		caseSpec{name: "stock_client_picks_fast_start", run: stockClientPicksFastStart},
		caseSpec{name: "raw_http_and_fast_start_clients_exchange", run: rawAndFastStartExchange},
		caseSpec{name: "server_key_is_the_same_on_five_connects", run: sameKeyFiveTimes},
		caseSpec{name: "server_info_is_the_first_message", run: serverInfoIsFirst},
		caseSpec{name: "server_speaks_first", run: serverSpeaksFirst},
	)
}

// bare dials TLS and hands over the unspoken connection.
func (t *T) bare() *session {
	conn, err := t.target.dialTLS(t.target.tlsConfig(), 0)
	t.check(err, "connecting")
	return t.sessionOver(conn, key.NodePrivate{})
}

func (tg *target) wantReply() string {
	return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n" +
		"Derp-Version: 2\r\nDerp-Public-Key: " + tg.serverKey.UntypedHexString() + "\r\n\r\n"
}

func (s *session) wantRawReply() {
	if got, want := s.readHead("101"), s.t.target.wantReply(); got != want {
		s.t.failf("the upgrade reply is %q, want %q", got, want)
	}
}

// wantJoins completes the login of a session whose upgrade reply was read.
func (s *session) wantJoins() {
	s.wantServerKey()
	s.sendInfo(stockInfo)
	s.wantServerInfo()
	s.wantAlive()
}

func upgradeReplyIsExact(t *T) {
	s := t.bare()
	s.write(upgradeHead(t.target))
	s.wantRawReply()
	s.wantJoins()
}

func fastStartSendsNoHTTP(t *T) {
	s := t.bare()
	s.write(upgradeHead(t.target, "Derp-Fast-Start: 1"))
	s.wantJoins()
}

func fastStartNeedsValueOne(t *T) {
	for _, value := range []string{"0", "true", "11"} {
		s := t.bare()
		s.write(upgradeHead(t.target, "Derp-Fast-Start: "+value))
		s.wantRawReply()
		s.wantJoins()
	}
}

func takesHeadByteByByte(t *T) {
	for _, headers := range [][]string{nil, {"Derp-Fast-Start: 1"}} {
		s := t.bare()
		login := append(upgradeHead(t.target, headers...), frameBytes(derp.FrameClientInfo, s.infoPayload(stockInfo))...)
		for i := range login {
			s.write(login[i : i+1])
		}
		if headers == nil {
			s.wantRawReply()
		}
		s.wantServerKey()
		s.wantServerInfo()
		s.wantAlive()
	}
}

func takesClientInfoInSameRecord(t *T) {
	s := t.bare()
	s.write(append(upgradeHead(t.target, "Derp-Fast-Start: 1"), frameBytes(derp.FrameClientInfo, s.infoPayload(stockInfo))...))
	s.wantServerKey()
	s.wantServerInfo()
	s.wantAlive()
}

func takesPacketsInSameRecord(t *T) {
	s := t.bare()
	packet := randomBytes(900)
	all := append(upgradeHead(t.target, "Derp-Fast-Start: 1"), frameBytes(derp.FrameClientInfo, s.infoPayload(stockInfo))...)
	all = append(all, packetFrame(s.public, packet)...)
	s.write(all)
	s.wantServerKey()
	s.wantServerInfo()
	s.wantPacket(s.public, packet)
}

func upgradeAfterKeepAlive(t *T) {
	for _, headers := range [][]string{nil, {"Derp-Fast-Start: 1"}} {
		s := t.bare()
		request := fmt.Sprintf("GET /generate_204 HTTP/1.1\r\nHost: %s\r\n\r\n", t.target.hostPort())
		s.write([]byte(request))
		if head := s.readHead("204"); strings.Contains(strings.ToLower(head), "connection: close") {
			t.failf("the server closes after one request: %q", head)
		}
		s.write(upgradeHead(t.target, headers...))
		if headers == nil {
			s.wantRawReply()
		}
		s.wantJoins()
	}
}

func upgradeHeaderCase(t *T) {
	for _, value := range []string{"derp", "Derp", "dErP"} {
		s := t.bare()
		s.write([]byte(strings.Replace(string(upgradeHead(t.target)), "Upgrade: DERP", "uPGRADE: "+value, 1)))
		s.wantRawReply()
		s.wantJoins()
	}
}

func websocketWithoutSubprotocolIsRaw(t *T) {
	for _, headers := range [][]string{nil, {"Sec-WebSocket-Protocol: chat"}} {
		s := t.bare()
		s.write([]byte(strings.Replace(string(upgradeHead(t.target, headers...)), "Upgrade: DERP", "Upgrade: WebSocket", 1)))
		s.wantRawReply()
		s.wantJoins()
	}
}

func upgradeAcceptsAnyMethod(t *T) {
	s := t.bare()
	s.write([]byte("POST /derp HTTP/1.1\r\nHost: elsewhere.example\r\nOrigin: https://elsewhere.example\r\nUpgrade: DERP\r\n\r\n"))
	s.wantRawReply()
	s.wantJoins()
}

func upgradeAcceptsIdealNode(t *T) {
	t.joinWith(joinOptions{headers: []string{"Ideal-Node: 1b"}}).wantAlive()
}

func stockClientsExchange(t *T) {
	a, b := t.stock(), t.stock()
	there, back := randomBytes(1400), randomBytes(62)
	a.send(b.SelfPublicKey(), there)
	b.wantPacket(a.SelfPublicKey(), there)
	b.send(a.SelfPublicKey(), back)
	a.wantPacket(b.SelfPublicKey(), back)
}

// stockClientPicksFastStart reads the client's own conclusion: it knows the
// server's key from the certificates alone, which is its condition.
func stockClientPicksFastStart(t *T) {
	c := t.stock()
	state, ok := c.TLSConnectionState()
	if !ok || state.Version < tls13 {
		t.failf("the stock client negotiated TLS version %#x, fast start needs 1.3", state.Version)
	}
	t.wantMetaCertificate(state.PeerCertificates)
	if c.ServerPublicKey() != t.target.serverKey {
		t.failf("the stock client believes in server key %v, want %v", c.ServerPublicKey(), t.target.serverKey)
	}
}

func rawAndFastStartExchange(t *T) {
	slow, fast := t.joinWith(joinOptions{httpUpgrade: true}), t.join()
	slow.sendPacket(fast.public, []byte("over there"))
	fast.wantPacket(slow.public, []byte("over there"))
	fast.sendPacket(slow.public, []byte("and back"))
	slow.wantPacket(fast.public, []byte("and back"))
}

func sameKeyFiveTimes(t *T) {
	for range 5 {
		if got := t.stock().ServerPublicKey(); got != t.target.serverKey {
			t.failf("the server's key is %v, it was %v before", got, t.target.serverKey)
		}
		// wantServerKey compares the key in the frame for the same reason.
		t.open(joinOptions{})
	}
}

func serverInfoIsFirst(t *T) {
	a, b := t.join(), key.NewNode()
	// A sender that is faster than the login must not push its packet in
	// front of ServerInfo, which makes probers fail.
	stop := make(chan struct{})
	t.gather(
		func() { a.repeat(packetFrame(b.Public(), []byte("early")), stop) },
		func() {
			defer close(stop)
			for range 50 {
				t.joinWith(joinOptions{private: b}).close()
			}
		},
	)
}

func serverSpeaksFirst(t *T) {
	s := t.bare()
	s.write(upgradeHead(t.target))
	response, err := http.ReadResponse(bufio.NewReader(s.br), nil)
	t.check(err, "reading the upgrade reply as a stock client does")
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.failf("the upgrade reply has status %d", response.StatusCode)
	}
	quiet := t.bare()
	quiet.write(upgradeHead(t.target, "Derp-Fast-Start: 1"))
	quiet.wantServerKey()
}
