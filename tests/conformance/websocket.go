// A hand-written WebSocket client, for what no library sends: fragments, text,
// control frames between them. It owns the frame layout of RFC 6455. It must
// never reassemble: the sizes of single frames are what cases look at.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Opcodes of RFC 6455, section 5.2.
const (
	wsContinuation = 0x0
	wsText         = 0x1
	wsBinary       = 0x2
	wsClose        = 0x8
	wsPing         = 0x9
	wsPong         = 0xa
)

// wsFrameBytesMax bounds what the client will take: no server needs more for
// one packet.
const wsFrameBytesMax = 1 << 20

type wsFrame struct {
	final   bool
	opcode  byte
	payload []byte
}

type wsClient struct {
	t    *T
	conn net.Conn
	br   *bufio.Reader
}

// wsHead is an upgrade request; a header given as "" is left out.
func wsHead(tg *target, protocol, version string) []byte {
	head := "GET /derp HTTP/1.1\r\nHost: " + tg.hostPort() + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Key: " + base64.StdEncoding.EncodeToString(randomBytes(16)) + "\r\n" +
		"Origin: https://elsewhere.example\r\n"
	if version != "" {
		head += "Sec-WebSocket-Version: " + version + "\r\n"
	}
	return []byte(head + "Sec-WebSocket-Protocol: " + protocol + "\r\n\r\n")
}

// wsDial sends the head and returns the reply together with the connection.
func (t *T) wsDial(head []byte) (*wsClient, *http.Response) {
	conn, err := t.target.dialTLS(t.target.tlsConfig(), 0)
	t.check(err, "connecting")
	t.onEnd(func() { conn.Close() })
	w := &wsClient{t: t, conn: conn, br: bufio.NewReader(conn)}
	w.write(head)
	conn.SetReadDeadline(time.Now().Add(patience))
	response, err := http.ReadResponse(w.br, nil)
	t.check(err, "reading the reply to a WebSocket upgrade")
	return w, response
}

func (w *wsClient) write(b []byte) {
	w.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := w.conn.Write(b)
	w.t.check(err, "writing %d bytes", len(b))
}

func (w *wsClient) send(f wsFrame) { w.write(f.bytes()) }

// bytes lays the frame out as a client has to: masked.
//
//	 0               1               2               3
//	+-+-------+-----+-+-------------+-------------------------------+
//	|F|  RSV  | op  |M| length (7)  | length (16 or 64 if 126, 127) |
//	+-+-------+-----+-+-------------+-------------------------------+
//	| mask (32)                     | payload ...                   |
//	+-------------------------------+-------------------------------+
func (f wsFrame) bytes() []byte {
	first := f.opcode
	if f.final {
		first |= 0x80
	}
	b := []byte{first}
	switch n := len(f.payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := randomBytes(4)
	b = append(b, mask...)
	for i, c := range f.payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

func (w *wsClient) recv() wsFrame {
	w.conn.SetReadDeadline(time.Now().Add(patience))
	f, err := readWSFrame(w.br)
	w.t.check(err, "waiting for a WebSocket frame")
	return f
}

func readWSFrame(br *bufio.Reader) (f wsFrame, err error) {
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return f, err
	}
	if head[0]&0x70 != 0 || head[1]&0x80 != 0 {
		return f, fmt.Errorf("frame head %x has reserved bits or a mask set", head)
	}
	f.final, f.opcode = head[0]&0x80 != 0, head[0]&0x0f
	length := uint64(head[1])
	if extra := map[uint64]int{126: 2, 127: 8}[length]; extra > 0 {
		var wide [8]byte
		if _, err := io.ReadFull(br, wide[8-extra:]); err != nil {
			return f, err
		}
		length = binary.BigEndian.Uint64(wide[:])
	}
	if length > wsFrameBytesMax {
		return f, fmt.Errorf("a WebSocket frame of %d bytes", length)
	}
	f.payload = make([]byte, length)
	_, err = io.ReadFull(br, f.payload)
	return f, err
}

// wantClose reads up to the Close frame and compares its code, then expects
// the connection to end.
func (w *wsClient) wantClose(code uint16) {
	for {
		f := w.recv()
		if f.opcode != wsClose {
			continue
		}
		if len(f.payload) < 2 || binary.BigEndian.Uint16(f.payload) != code {
			w.t.failf("closed with %q, want code %d", f.payload, code)
		}
		break
	}
	w.send(wsFrame{true, wsClose, binary.BigEndian.AppendUint16(nil, code)})
	w.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, w.br); err != nil && !isReset(err) {
		w.t.failf("after Close %d: %v", code, err)
	}
}

// wsStream makes the binary messages of a client into the stream of bytes
// that DERP runs on, and records how long each message was. Every Write is
// one message of the pieces it is told to cut.
type wsStream struct {
	net.Conn
	client *wsClient
	rest   []byte

	pieceBytes          int // 0 sends each Write as one frame
	pingBetween         bool
	messageBytes        int
	longestMessageBytes int
}

func (s *wsStream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		f, err := readWSFrame(s.client.br)
		if err != nil {
			return 0, err
		}
		switch f.opcode {
		case wsBinary, wsContinuation:
			if f.opcode == wsBinary {
				s.messageBytes = 0
			}
			s.messageBytes += len(f.payload)
			s.longestMessageBytes = max(s.longestMessageBytes, s.messageBytes)
			s.rest = f.payload
		case wsPing, wsPong:
		case wsClose:
			return 0, io.EOF
		default:
			return 0, fmt.Errorf("a WebSocket frame with opcode %#x", f.opcode)
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *wsStream) Write(p []byte) (int, error) {
	step := s.pieceBytes
	if step == 0 {
		step = max(1, len(p))
	}
	var out []byte
	for at, opcode := 0, byte(wsBinary); at < len(p); at, opcode = at+step, wsContinuation {
		end := min(at+step, len(p))
		out = append(out, wsFrame{end == len(p), opcode, p[at:end]}.bytes()...)
		if s.pingBetween {
			out = append(out, wsFrame{true, wsPing, []byte("in between")}.bytes()...)
		}
	}
	if _, err := s.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
