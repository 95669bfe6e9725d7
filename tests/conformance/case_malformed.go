// Cases about frames no stock client sends: what ends the connection, what is
// skipped, and that neither disturbs anybody else.
package main

import (
	"bytes"
	"encoding/binary"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register(
		caseSpec{name: "send_packet_shorter_than_a_key_closes", run: shortSendPacketCloses},
		caseSpec{name: "note_preferred_of_one_byte_is_accepted", run: notePreferredAccepted},
		caseSpec{name: "note_preferred_of_other_length_closes", run: notePreferredLength},
		caseSpec{name: "unknown_frames_are_skipped", run: unknownFramesSkipped},
		caseSpec{name: "unknown_frame_of_1_mib_is_skipped", run: longUnknownFrameSkipped},
		caseSpec{name: "unknown_frame_of_4_gib_is_not_fatal", run: endlessUnknownFrame},
		caseSpec{name: "second_client_info_is_ignored", run: secondClientInfoIgnored},
		caseSpec{name: "mesh_frames_from_a_regular_client_close", run: meshFramesClose},
		caseSpec{name: "close_peer_from_a_regular_client_closes_nobody_else", run: closePeerHarmless},
		caseSpec{name: "frame_cut_off_in_the_middle_harms_nobody", run: cutOffFrames},
		caseSpec{name: "server_still_relays_after_all_other_cases", last: true, run: stillRelays},
	)
}

func shortSendPacketCloses(t *T) {
	for _, length := range []int{0, 1, keyBytes - 1} {
		s := t.join()
		_ = s.tryWrite(frameBytes(derp.FrameSendPacket, make([]byte, length)))
		s.wantClosed()
	}
}

func notePreferredAccepted(t *T) {
	s := t.join()
	for _, value := range []byte{1, 0, 1, 1, 0xff, 0} {
		s.send(derp.FrameNotePreferred, []byte{value})
	}
	s.wantQuiet()
}

func notePreferredLength(t *T) {
	for _, length := range []int{0, 2, 100} {
		s := t.join()
		_ = s.tryWrite(frameBytes(derp.FrameNotePreferred, make([]byte, length)))
		s.wantClosed()
	}
}

// unknownFramesSkipped covers types nobody defined and those that only servers
// send: to a server they are the same.
func unknownFramesSkipped(t *T) {
	s := t.join()
	for _, typ := range []byte{0x00, 0x01, 0x03, 0x05, 0x06, 0x08, 0x09, 0x0b, 0x0f, 0x14, 0x15, 0x16, 0x7f, 0x80, 0xff} {
		for _, length := range []int{0, 1, 31, 33, 5000} {
			s.send(derp.FrameType(typ), bytes.Repeat([]byte{typ}, length))
		}
		s.wantAlive()
	}
	s.wantQuiet()
}

func longUnknownFrameSkipped(t *T) {
	s, other := t.join(), t.join()
	s.send(0xee, make([]byte, 1<<20))
	packet := randomBytes(1400)
	s.sendPacket(other.public, packet)
	other.wantPacket(s.public, packet)
	s.wantQuiet()
}

// endlessUnknownFrame cannot be finished; meanwhile the client has to be
// served as a receiver.
func endlessUnknownFrame(t *T) {
	s, other := t.join(), t.join()
	head := binary.BigEndian.AppendUint32([]byte{0xee}, 1<<32-1)
	s.write(append(head, make([]byte, 4<<20)...))
	other.sendPacket(s.public, []byte("still there"))
	s.wantPacket(other.public, []byte("still there"))
}

func secondClientInfoIgnored(t *T) {
	s, other := t.join(), t.join()
	s.sendInfo(stockInfo)
	// The second document names another key; the connection keeps the first.
	impostor := key.NewNode()
	s.send(derp.FrameClientInfo, append(impostor.Public().AppendTo(nil), impostor.SealTo(t.target.serverKey, []byte(stockInfo))...))
	s.send(derp.FrameClientInfo, nil)
	s.sendPacket(other.public, []byte("who am I"))
	other.wantPacket(s.public, []byte("who am I"))
	s.wantQuiet()
}

func meshFramesClose(t *T) {
	peer := t.join()
	forward := append(key.NewNode().Public().AppendTo(nil), peer.public.AppendTo(nil)...)
	for _, f := range []frame{
		{derp.FrameWatchConns, nil},
		{derp.FrameWatchConns, []byte{0}},
		{derp.FrameForwardPacket, append(forward, "forged"...)},
		{derp.FrameForwardPacket, nil},
		{derp.FrameClosePeer, peer.public.AppendTo(nil)},
		{derp.FrameClosePeer, nil},
	} {
		s := t.join()
		_ = s.tryWrite(frameBytes(f.typ, f.payload))
		s.wantClosed()
	}
	peer.wantQuiet()
}

func closePeerHarmless(t *T) {
	victim, attacker := t.join(), t.join()
	attacker.send(derp.FrameClosePeer, victim.public.AppendTo(nil))
	attacker.wantClosed()
	victim.wantQuiet()
}

func cutOffFrames(t *T) {
	witness := t.join()
	whole := packetFrame(witness.public, []byte("never complete"))
	for cut := 1; cut < len(whole); cut += 3 {
		s := t.join()
		s.write(whole[:cut])
		s.close()
	}
	witness.wantQuiet()
}

func stillRelays(t *T) {
	stockClientsExchange(t)
	rawAndFastStartExchange(t)
	t.stream(t.join(), t.join(), 1000, 1400)
}
