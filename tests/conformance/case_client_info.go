// Cases about ClientInfo, the first thing a server reads from a stranger: its
// size, its box, and its JSON by the rules of the stock server's decoder.
package main

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	clientInfoBytesMin = 56
	clientInfoBytesMax = 262_144
	// boxBytes is what sealing adds: a nonce of 24 bytes and a tag of 16.
	boxBytes = 40
)

func init() {
	register(
		caseSpec{name: "client_info_documents_accepted", run: documentsAccepted},
		caseSpec{name: "client_info_documents_refused", run: documentsRefused},
		caseSpec{name: "client_info_with_zero_key_refused", run: zeroKeyRefused},
		caseSpec{name: "client_info_with_garbage_box_refused", run: garbageBoxRefused},
		caseSpec{name: "client_info_sealed_for_another_server_refused", run: foreignBoxRefused},
		caseSpec{name: "client_info_too_short_refused", run: shortInfoRefused},
		caseSpec{name: "client_info_of_256_kib_accepted_and_one_more_refused", run: longInfo},
		caseSpec{name: "client_info_must_be_the_first_frame", run: infoMustBeFirst},
		caseSpec{name: "client_info_with_foreign_mesh_key_is_a_regular_client", run: foreignMeshKey},
		caseSpec{name: "silent_client_is_cut_at_10_s", run: silentClientIsCut},
		caseSpec{name: "client_stopping_inside_client_info_is_cut_at_10_s", run: stoppingClientIsCut},
		caseSpec{name: "http_head_without_end_is_cut_at_30_s", slow: true, run: endlessHeadIsCut},
	)
}

func documentsAccepted(t *T) {
	for _, document := range []string{
		`{}`,
		`null`,
		` {"version":2} ` + "\n",
		`{"version":2,"CanAckPings":true,"IsProber":true}`,
		`{"version":2,"CanAckPings":false,"AppName":"conformance"}`,
		`{"VERSION":2,"canackpings":true,"isPROBER":false,"appname":"x"}`,
		`{"version":2,"Unknown":{"a":[1,2,{"b":null}]},"another":"x"}`,
		`{"version":null,"CanAckPings":null,"IsProber":null,"AppName":null}`,
		`{"version":0}`,
		`{"version":-1}`,
		`{"version":999}`,
		`{"version":1,"version":2}`,
		`{"AppName":"\u00e9\ud83d\udd11\"\\\/"}`,
	} {
		s := t.open(joinOptions{})
		s.sendInfo(document)
		if f, err := s.tryRecv(patience); err != nil || f.typ != derp.FrameServerInfo {
			t.failf("the document %s brought %v (%v), want ServerInfo", document, f, err)
		}
		s.wantAlive()
	}
}

func documentsRefused(t *T) {
	for _, document := range []string{
		``,
		` `,
		`{`,
		`{"version":2`,
		`{"version":2}x`,
		`{"version":2}{}`,
		`{"version":2}` + "\x00",
		`{"version":2,}`,
		`{'version':2}`,
		`{version:2}`,
		`{"version":02}`,
		`[]`,
		`"version"`,
		`2`,
		`true`,
		`nul`,
		`{"version":"2"}`,
		`{"version":2.5}`,
		`{"version":99999999999999999999}`,
		`{"version":2,"CanAckPings":1}`,
		`{"version":2,"CanAckPings":"true"}`,
		`{"version":2,"IsProber":[]}`,
		`{"version":2,"AppName":7}`,
		`{"version":2,"meshKey":""}`,
		`{"version":2,"MESHKEY":""}`,
		`{"version":2,"meshKey":"00"}`,
		`{"version":2,"meshKey":"` + strings.Repeat("zz", 32) + `"}`,
		`{"version":2,"meshKey":"` + strings.Repeat("ab", 33) + `"}`,
		`{"version":2,"meshKey":5}`,
		`{"version":2,"meshKey":null}`,
		"{\"AppName\":\"a\nb\"}",
	} {
		s := t.open(joinOptions{})
		s.sendInfo(document)
		f, err := s.tryRecv(refusalMax)
		switch {
		case err == nil:
			t.failf("the document %q brought %v, want the connection closed", document, f)
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.failf("the document %q left the connection open for %v", document, refusalMax)
		}
	}
}

func zeroKeyRefused(t *T) {
	for _, length := range []int{clientInfoBytesMin - keyBytes, 72} {
		s := t.open(joinOptions{})
		s.send(derp.FrameClientInfo, append(make([]byte, keyBytes), randomBytes(length)...))
		s.wantClosed()
	}
	// Later clients must still be served: a stock server survives a panic
	// here, and a replacement must not do worse.
	t.join().wantAlive()
}

func garbageBoxRefused(t *T) {
	for _, length := range []int{24, 39, 40, 41, 72, 10_000} {
		s := t.open(joinOptions{})
		s.send(derp.FrameClientInfo, append(s.public.AppendTo(nil), randomBytes(length)...))
		s.wantClosed()
	}
	flipped := t.open(joinOptions{})
	payload := flipped.infoPayload(stockInfo)
	payload[len(payload)-1] ^= 1
	flipped.send(derp.FrameClientInfo, payload)
	flipped.wantClosed()
}

func foreignBoxRefused(t *T) {
	s := t.open(joinOptions{})
	box := s.private.SealTo(key.NewNode().Public(), []byte(stockInfo))
	s.send(derp.FrameClientInfo, append(s.public.AppendTo(nil), box...))
	s.wantClosed()
}

func shortInfoRefused(t *T) {
	for _, length := range []int{0, 1, keyBytes, clientInfoBytesMin - 1} {
		s := t.open(joinOptions{})
		_ = s.tryWrite(frameBytes(derp.FrameClientInfo, make([]byte, length)))
		s.wantClosed()
	}
}

func longInfo(t *T) {
	padding := clientInfoBytesMax - keyBytes - boxBytes - len(stockInfo)
	longest := t.open(joinOptions{})
	longest.sendInfo(stockInfo + strings.Repeat(" ", padding))
	longest.wantServerInfo()
	longest.wantAlive()

	for _, announced := range []uint32{clientInfoBytesMax + 1, 1 << 20, 1<<32 - 1} {
		s := t.open(joinOptions{})
		s.write(binary.BigEndian.AppendUint32([]byte{byte(derp.FrameClientInfo)}, announced))
		// The announced length is refused, not the bytes behind it.
		s.wantClosed()
	}
}

func infoMustBeFirst(t *T) {
	for _, f := range []frame{
		{derp.FramePing, make([]byte, 8)},
		{derp.FrameSendPacket, make([]byte, 100)},
		{derp.FramePong, make([]byte, 8)},
		{0xee, make([]byte, 100)},
	} {
		s := t.open(joinOptions{})
		_ = s.tryWrite(frameBytes(f.typ, f.payload))
		s.wantClosed()
	}
}

func foreignMeshKey(t *T) {
	info := `{"version":2,"CanAckPings":true,"meshKey":"` + strings.Repeat("5a", 32) + `"}`
	s := t.joinWith(joinOptions{info: info})
	s.wantAlive()
	s.send(derp.FrameWatchConns, nil)
	s.wantClosed()
}

func silentClientIsCut(t *T) {
	t.open(joinOptions{}).wantClosedWithin(8*time.Second, 13*time.Second)
}

func stoppingClientIsCut(t *T) {
	s := t.open(joinOptions{})
	login := frameBytes(derp.FrameClientInfo, s.infoPayload(stockInfo))
	s.write(login[:len(login)-1])
	s.wantClosedWithin(8*time.Second, 13*time.Second)
}

func endlessHeadIsCut(t *T) {
	s := t.bare()
	head := upgradeHead(t.target)
	s.write(head[:len(head)-2])
	s.wantClosedWithin(20*time.Second, 40*time.Second)
}
