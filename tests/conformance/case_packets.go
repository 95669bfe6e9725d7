// Cases about relaying packets between well-behaved clients: sizes, order,
// loss, and who receives what.
package main

import (
	"bytes"
	"encoding/binary"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// windowPackets is what a bandwidth prober keeps in flight; a server that
// drops below it cannot be measured.
const windowPackets = 30

func init() {
	register(
		caseSpec{name: "packets_of_all_sizes_arrive_intact", run: sizesArriveIntact},
		caseSpec{name: "packets_of_all_sizes_between_stock_clients", run: sizesBetweenStockClients},
		caseSpec{name: "packet_of_65537_bytes_closes", run: oversizedCloses},
		caseSpec{name: "packets_keep_order_without_loss_30_in_flight", run: orderKept},
		caseSpec{name: "packets_of_65536_bytes_keep_order_30_in_flight", run: bandwidthProbe},
		caseSpec{name: "packet_to_own_key_returns", run: ownKeyReturns},
		caseSpec{name: "packets_reach_all_from_all", run: allToAll},
		caseSpec{name: "packets_in_one_record_arrive_each", run: manyInOneRecord},
		caseSpec{name: "packet_split_over_many_records_arrives", run: splitOverRecords},
		caseSpec{name: "packets_both_ways_at_once", run: bothWays},
		caseSpec{name: "mesh_probe_of_a_stock_prober", run: meshProbe},
	)
}

var packetSizes = []int{
	0, 1, 2, 31, 32, 61, 62, 63, 1000, 1280, 1400, 2043, 2048, 4059, 4064, 4096, 8192, 16_347, 16_383, 16_384, 16_385,
	32_731, 32_736, 32_767, 32_768, 32_769, 65_499, 65_500, 65_535, packetBytesMax,
}

func sizesArriveIntact(t *T) {
	a, b := t.join(), t.joinWith(joinOptions{httpUpgrade: true})
	for _, size := range packetSizes {
		packet := randomBytes(size)
		a.sendPacket(b.public, packet)
		b.wantPacket(a.public, packet)
		b.sendPacket(a.public, packet)
		a.wantPacket(b.public, packet)
	}
}

func sizesBetweenStockClients(t *T) {
	a, b := t.stock(), t.stock()
	for _, size := range packetSizes {
		packet := randomBytes(size)
		a.send(b.SelfPublicKey(), packet)
		b.wantPacket(a.SelfPublicKey(), packet)
	}
}

func oversizedCloses(t *T) {
	a, b := t.join(), t.join()
	// The server may close at the header, before the rest is written.
	_ = a.tryWrite(packetFrame(b.public, make([]byte, packetBytesMax+1)))
	a.wantClosed()
	b.wantQuiet()
}

// stream sends count numbered packets of the given size with at most
// windowPackets of them unseen by the receiver, and demands every one of them
// in order.
func (t *T) stream(from, to *session, count, sizeBytes int) {
	window := make(chan struct{}, windowPackets)
	failed := make(chan struct{})
	t.gather(
		func() {
			packet := make([]byte, sizeBytes)
			for i := range count {
				select {
				case window <- struct{}{}:
				case <-failed:
					return
				}
				numberPacket(packet, i)
				from.sendPacket(to.public, packet)
			}
		},
		func() {
			defer close(failed)
			want := make([]byte, sizeBytes)
			for i := range count {
				numberPacket(want, i)
				f := to.recv()
				if f.typ != derp.FrameRecvPacket || len(f.payload) != keyBytes+sizeBytes {
					t.failf("got %v instead of packet %d", f, i)
				}
				if got := numberOf(f.payload[keyBytes:]); got != i {
					t.failf("got packet %d instead of %d", got, i)
				}
				if !bytes.Equal(f.payload[keyBytes:], want) || publicFrom(f.payload) != from.public {
					t.failf("packet %d came changed", i)
				}
				<-window
			}
		},
	)
}

// numberPacket writes i at the head and lets the tail follow from it, so that
// mixed up bodies are noticed.
func numberPacket(packet []byte, i int) {
	for j := range packet {
		packet[j] = byte(i + j)
	}
	binary.BigEndian.PutUint64(packet, uint64(i))
}

func numberOf(packet []byte) int { return int(binary.BigEndian.Uint64(packet)) }

func orderKept(t *T)      { t.stream(t.join(), t.join(), 20_000, 1400) }
func bandwidthProbe(t *T) { t.stream(t.join(), t.join(), 300, packetBytesMax) }

func ownKeyReturns(t *T) {
	raw, stock := t.join(), t.stock()
	packet := randomBytes(1400)
	raw.sendPacket(raw.public, packet)
	raw.wantPacket(raw.public, packet)
	stock.send(stock.SelfPublicKey(), packet)
	stock.wantPacket(stock.SelfPublicKey(), packet)
}

// allToAll lets every client send one packet to every client in each round.
// Fewer than a receiver's queue of 32 are under way to one client at a time.
func allToAll(t *T) {
	const clients, rounds = 24, 5
	members := make([]*session, clients)
	for i := range members {
		members[i] = t.joinWith(joinOptions{httpUpgrade: i%2 == 0})
	}
	for round := range rounds {
		var parts []func()
		for _, from := range members {
			parts = append(parts, func() {
				for _, to := range members {
					from.sendPacket(to.public, meetingPacket(from, to, round))
				}
			})
		}
		for _, to := range members {
			parts = append(parts, func() { to.wantOneFromEach(members, round) })
		}
		t.gather(parts...)
	}
}

func meetingPacket(from, to *session, round int) []byte {
	return append(to.public.AppendTo(from.public.AppendTo(nil)), byte(round))
}

func (s *session) wantOneFromEach(members []*session, round int) {
	missing := map[key.NodePublic]*session{}
	for _, m := range members {
		missing[m.public] = m
	}
	for len(missing) > 0 {
		f := s.recv()
		if f.typ != derp.FrameRecvPacket || len(f.payload) < keyBytes {
			s.t.failf("round %d: got %v while packets were due", round, f)
		}
		source := publicFrom(f.payload)
		from, due := missing[source]
		if !due || !bytes.Equal(f.payload[keyBytes:], meetingPacket(from, s, round)) {
			s.t.failf("round %d: an unexpected packet from %v", round, source.ShortString())
		}
		delete(missing, source)
	}
}

func manyInOneRecord(t *T) {
	a, b := t.join(), t.join()
	const count = 25
	var record []byte
	for i := range count {
		record = append(record, packetFrame(b.public, bytes.Repeat([]byte{byte(i)}, i*20))...)
	}
	a.write(record)
	for i := range count {
		b.wantPacket(a.public, bytes.Repeat([]byte{byte(i)}, i*20))
	}
}

func splitOverRecords(t *T) {
	a, b := t.join(), t.join()
	packet := randomBytes(120)
	all := append(packetFrame(b.public, packet), packetFrame(b.public, nil)...)
	for i := range all {
		a.write(all[i : i+1])
	}
	b.wantPacket(a.public, packet)
	b.wantPacket(a.public, nil)
}

func bothWays(t *T) {
	a, b := t.join(), t.join()
	c, d := t.join(), t.join()
	t.gather(
		func() { t.stream(a, b, 2000, 1400) },
		func() { t.stream(c, d, 2000, 64) },
		func() { t.exchange(2000) },
	)
}

// exchange keeps one packet in flight in each direction of a new pair.
func (t *T) exchange(rounds int) {
	a, b := t.join(), t.join()
	packet := randomBytes(700)
	for range rounds {
		a.sendPacket(b.public, packet)
		b.sendPacket(a.public, packet)
		a.wantPacket(b.public, packet)
		b.wantPacket(a.public, packet)
	}
}

// meshProbe does what a stock prober does to a single node: two clients that
// call themselves probers, and one packet of 8 bytes.
func meshProbe(t *T) {
	from, to := t.stockClient(true), t.stockClient(true)
	packet := randomBytes(8)
	from.send(to.SelfPublicKey(), packet)
	to.wantPacket(from.SelfPublicKey(), packet)
}
