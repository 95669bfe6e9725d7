// Cases about DERP inside WebSocket messages.
package main

import (
	"bytes"
	"context"
	"net/http"
	"strings"

	"github.com/coder/websocket"
	"tailscale.com/derp"
	"tailscale.com/net/wsconn"
	"tailscale.com/types/key"
)

const (
	// wsMessageBytesMax is where the library of stock clients closes.
	wsMessageBytesMax = 32_768

	wsUnsupportedData = 1003
	wsPolicyViolation = 1008
)

func init() {
	register(
		caseSpec{name: "websocket_upgrade_reply", run: wsUpgradeReply},
		caseSpec{name: "websocket_library_client_exchanges_with_raw_clients", run: wsLibraryExchange},
		caseSpec{name: "websocket_client_exchanges_with_raw_clients", run: func(t *T) { t.wsExchange(0, false) }},
		caseSpec{name: "websocket_clients_exchange", run: wsPair},
		caseSpec{name: "websocket_message_boundaries_mean_nothing", run: wsBoundaries},
		caseSpec{name: "websocket_takes_fragmented_messages", run: func(t *T) { t.wsExchange(7, false) }},
		caseSpec{name: "websocket_takes_ping_between_fragments", run: func(t *T) { t.wsExchange(300, true) }},
		caseSpec{name: "websocket_ping_is_answered", run: wsPingAnswered},
		caseSpec{name: "websocket_packet_of_65536_bytes_comes_in_messages_of_32_kib", run: wsLargePacket},
		caseSpec{name: "websocket_takes_message_of_32_kib", run: wsLargestMessage},
		caseSpec{name: "websocket_text_closes_1003", run: wsTextCloses},
		caseSpec{name: "websocket_wrong_subprotocol_closes_1008", run: wsWrongSubprotocol},
		caseSpec{name: "websocket_bad_version_is_400", run: wsBadVersion},
		caseSpec{name: "websocket_close_makes_the_peer_gone", run: wsCloseMakesGone},
	)
}

// wsJoin logs a hand-written WebSocket client in.
func (t *T) wsJoin(pieceBytes int, pingBetween bool) (*session, *wsStream) {
	w, response := t.wsDial(wsHead(t.target, "derp", "13"))
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.failf("the WebSocket upgrade brought status %d", response.StatusCode)
	}
	stream := &wsStream{Conn: w.conn, client: w, pieceBytes: pieceBytes, pingBetween: pingBetween}
	s := t.sessionOver(stream, key.NodePrivate{})
	s.wantServerKey()
	s.sendInfo(stockInfo)
	s.wantServerInfo()
	return s, stream
}

func wsUpgradeReply(t *T) {
	_, response := t.wsDial(wsHead(t.target, "derp", "13"))
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.failf("status %d, want 101", response.StatusCode)
	}
	for name, want := range map[string]string{"Upgrade": "websocket", "Connection": "Upgrade", "Sec-Websocket-Protocol": "derp"} {
		if got := response.Header.Get(name); !strings.EqualFold(got, want) {
			t.failf("header %s is %q, want %q", name, got, want)
		}
	}
	if got := response.Header.Get("Sec-Websocket-Extensions"); got != "" {
		t.failf("the server accepted extensions %q nobody offered", got)
	}
}

// wsLibraryExchange uses what browsers' builds of the stock client use.
func wsLibraryExchange(t *T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: t.target.tlsConfig()}}
	conn, response, err := websocket.Dial(ctx, "https://"+t.target.hostPort()+"/derp", &websocket.DialOptions{
		HTTPClient:      client,
		Subprotocols:    []string{"derp"},
		CompressionMode: websocket.CompressionContextTakeover,
	})
	t.check(err, "connecting with the WebSocket library")
	if got := response.Header.Get("Sec-Websocket-Extensions"); got != "" {
		t.failf("the server accepted the extensions %q, packets do not compress", got)
	}
	if conn.Subprotocol() != "derp" {
		t.failf("the server selected subprotocol %q", conn.Subprotocol())
	}
	s := t.sessionOver(wsconn.NetConn(ctx, conn, websocket.MessageBinary, ""), key.NodePrivate{})
	s.wantServerKey()
	s.sendInfo(stockInfo)
	s.wantServerInfo()
	s.wantExchangeWith(t.join(), 0, 62, 1400, 4096, 20_000)
}

// wantExchangeWith sends packets of the given sizes in both directions.
func (s *session) wantExchangeWith(other *session, sizes ...int) {
	for _, size := range sizes {
		packet := randomBytes(size)
		s.sendPacket(other.public, packet)
		other.wantPacket(s.public, packet)
		other.sendPacket(s.public, packet)
		s.wantPacket(other.public, packet)
	}
	s.wantAlive()
}

func (t *T) wsExchange(pieceBytes int, pingBetween bool) {
	s, _ := t.wsJoin(pieceBytes, pingBetween)
	s.wantExchangeWith(t.join(), 0, 1, 62, 1400, 4096, 20_000)
	s.wantExchangeWith(t.joinWith(joinOptions{httpUpgrade: true}), 1400)
}

func wsPair(t *T) {
	a, _ := t.wsJoin(0, false)
	b, _ := t.wsJoin(0, false)
	a.wantExchangeWith(b, 0, 1400, 20_000)
	t.stream(a, b, 2000, 1400)
}

// wsBoundaries puts several frames into one message and one frame into many
// messages.
func wsBoundaries(t *T) {
	s, _ := t.wsJoin(0, false)
	other := t.join()
	packet := randomBytes(100)
	one := packetFrame(other.public, packet)
	s.write(bytes.Repeat(one, 10))
	for range 10 {
		other.wantPacket(s.public, packet)
	}
	for i := range one {
		s.write(one[i : i+1])
	}
	other.wantPacket(s.public, packet)
}

func wsPingAnswered(t *T) {
	w, _ := t.wsDial(wsHead(t.target, "derp", "13"))
	for _, data := range [][]byte{nil, []byte("x"), randomBytes(125)} {
		w.send(wsFrame{true, wsPing, data})
		for {
			f := w.recv()
			if f.opcode == wsPong {
				if !bytes.Equal(f.payload, data) {
					t.failf("a WebSocket ping of %d bytes came back as %d others", len(data), len(f.payload))
				}
				break
			}
			if f.opcode != wsBinary {
				t.failf("got opcode %#x, want a pong", f.opcode)
			}
		}
	}
}

func wsLargePacket(t *T) {
	if t.target.stock {
		t.skipf("stock derper sends each packet as one message and loses its own clients")
	}
	s, stream := t.wsJoin(16_000, false)
	other := t.join()
	for _, size := range []int{32_000, 32_731, 32_732, 40_000, packetBytesMax} {
		packet := randomBytes(size)
		other.sendPacket(s.public, packet)
		s.wantPacket(other.public, packet)
	}
	if stream.longestMessageBytes > wsMessageBytesMax {
		t.failf("a message of %d bytes, stock clients close above %d", stream.longestMessageBytes, wsMessageBytesMax)
	}
}

func wsLargestMessage(t *T) {
	s, _ := t.wsJoin(0, false)
	other := t.join()
	packet := randomBytes(wsMessageBytesMax - headerBytes - keyBytes)
	s.sendPacket(other.public, packet)
	other.wantPacket(s.public, packet)
}

func wsTextCloses(t *T) {
	s, stream := t.wsJoin(0, false)
	s.wantAlive()
	stream.client.send(wsFrame{true, wsText, []byte("hello")})
	stream.client.wantClose(wsUnsupportedData)
}

func wsWrongSubprotocol(t *T) {
	w, response := t.wsDial(wsHead(t.target, "xderpx", "13"))
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.failf("status %d, want 101 and then a Close frame", response.StatusCode)
	}
	w.wantClose(wsPolicyViolation)
}

func wsBadVersion(t *T) {
	for _, version := range []string{"8", "12", ""} {
		_, response := t.wsDial(wsHead(t.target, "derp", version))
		if response.StatusCode != http.StatusBadRequest {
			t.failf("version %q brought status %d, want 400", version, response.StatusCode)
		}
		if got := response.Header.Get("Sec-Websocket-Version"); got != "13" {
			t.failf("the refusal of version %q offers %q, want 13", version, got)
		}
	}
}

func wsCloseMakesGone(t *T) {
	s, stream := t.wsJoin(0, false)
	other := t.join()
	s.introduce(other)
	stream.client.send(wsFrame{true, wsClose, []byte{0x03, 0xe8}})
	other.wantGone(s.public, derp.PeerGoneReasonDisconnected)
}
