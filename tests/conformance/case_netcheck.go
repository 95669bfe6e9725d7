// Cases that run whole stock programs, or the package that is one, against
// the server: what a node's own checks conclude about this relay.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/logger"
)

func init() {
	register(
		caseSpec{name: "netcheck_over_udp", run: netcheckOverUDP},
		caseSpec{name: "netcheck_over_https_with_udp_off", run: netcheckOverHTTPS},
		caseSpec{name: "stunc_prints_our_address", run: runStunc},
		caseSpec{name: "derpprobe_calls_everything_good", run: runDerpprobe},
	)
}

// derpMap names the server as the only node of the only region.
func (tg *target) derpMap(stunServer netip.AddrPort) *tailcfg.DERPMap {
	node := tg.node()
	if stunServer.IsValid() {
		node.STUNPort = int(stunServer.Port())
		// It takes the place of the node's addresses in STUN alone.
		node.STUNTestIP = stunServer.Addr().String()
	}
	return &tailcfg.DERPMap{OmitDefaultRegions: true, Regions: map[int]*tailcfg.DERPRegion{
		1: {RegionID: 1, RegionCode: "here", RegionName: "Here", Nodes: []*tailcfg.DERPNode{node}},
	}}
}

func (t *T) netcheck(m *tailcfg.DERPMap, options *netcheck.GetReportOpts) *netcheck.Report {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := &netcheck.Client{NetMon: netmon.NewStatic(), Logf: logger.Discard, SkipExternalNetwork: true}
	if options == nil {
		t.check(client.Standalone(ctx, ""), "opening netcheck's sockets")
	}
	report, err := client.GetReport(ctx, m, options)
	t.check(err, "running netcheck")
	return report
}

func (t *T) wantRegionLatency(report *netcheck.Report) {
	latency, ok := report.RegionLatency[1]
	if !ok || latency <= 0 || latency > time.Second {
		t.failf("netcheck measured %v for the region (found: %v)", latency, ok)
	}
	if report.PreferredDERP != 1 {
		t.failf("netcheck prefers region %d, want 1", report.PreferredDERP)
	}
}

func netcheckOverUDP(t *T) {
	if len(t.target.stun) == 0 {
		t.skipf("no -stun-addr given")
	}
	server := t.target.stun[0]
	report := t.netcheck(t.target.derpMap(server), nil)
	t.wantRegionLatency(report)
	if !report.UDP || report.IPv4 != server.Addr().Is4() || report.IPv6 != server.Addr().Is6() {
		t.failf("netcheck of %v says UDP %v, IPv4 %v, IPv6 %v", server, report.UDP, report.IPv4, report.IPv6)
	}
}

func netcheckOverHTTPS(t *T) {
	if strings.Contains(t.target.host, ":") {
		t.skipf("stock netcheck builds no valid URL from a host name that is an IPv6 address")
	}
	report := t.netcheck(t.target.derpMap(netip.AddrPort{}), &netcheck.GetReportOpts{OnlyTCP443: true})
	t.wantRegionLatency(report)
	if report.UDP {
		t.failf("netcheck claims UDP where it was not to use it")
	}
}

// run returns a stock program's output and whether it ended well.
func (t *T) run(program string, environment []string, args ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	command.Env = append(os.Environ(), environment...)
	both, err := command.CombinedOutput()
	return string(both), err
}

func runStunc(t *T) {
	if t.target.stunc == "" || len(t.target.stun) == 0 {
		t.skipf("no -stunc or no -stun-addr given")
	}
	for _, server := range t.target.stun {
		output, err := t.run(t.target.stunc, nil, server.Addr().String(), strconv.Itoa(int(server.Port())))
		t.check(err, "stunc %v", server)
		if !strings.Contains(output, "stun addr: ") {
			t.failf("stunc %v printed %q", server, output)
		}
	}
}

// runDerpprobe trusts the presented leaf through SSL_CERT_FILE, because the
// prober's TLS check knows system roots only.
func runDerpprobe(t *T) {
	if t.target.derpprobe == "" {
		t.skipf("no -derpprobe given")
	}
	if _, err := netip.ParseAddr(t.target.host); err == nil {
		t.skipf("derpprobe's mesh check cannot do with an address in the URL, it wants a name")
	}
	folder, err := os.MkdirTemp("", "conformance")
	t.check(err, "making a folder")
	t.onEnd(func() { os.RemoveAll(folder) })
	mapFile, leafFile := filepath.Join(folder, "map.json"), filepath.Join(folder, "leaf.pem")
	t.check(os.WriteFile(leafFile, t.leafPEM(), 0o600), "writing the leaf")
	t.check(t.writeProbeMap(mapFile), "writing the DERP map")

	// Its exit code counts probes of a family that was not given, too, so the
	// lines are judged instead.
	output, _ := t.run(t.target.derpprobe, []string{"SSL_CERT_FILE=" + leafFile},
		"-once", "-spread=false", "-derp-map=file://"+mapFile, "-bw-interval=10s", "-bw-probe-size-bytes=8000000")
	for _, probe := range t.probesDue() {
		if !strings.Contains(output, "good: derp/here/1a/"+probe+":") {
			t.failf("derpprobe found no good %s:\n%s", probe, output)
		}
	}
}

// probesDue names the probes that can be good with the addresses given.
func (t *T) probesDue() []string {
	due := []string{"tls", "1a/mesh", "1a/bw"}
	for _, server := range t.probedStun() {
		if server.Addr().Is4() {
			due = append(due, "udp")
		} else {
			due = append(due, "udp6")
		}
	}
	return due
}

// probedStun is what a DERP map can say: one port for both families.
func (t *T) probedStun() (same []netip.AddrPort) {
	for _, server := range t.target.stun {
		if server.Port() == t.target.stun[0].Port() {
			same = append(same, server)
		}
	}
	return same
}

// writeProbeMap adds the STUN addresses, which the prober takes from the
// node's own.
func (t *T) writeProbeMap(path string) error {
	m := t.target.derpMap(netip.AddrPort{})
	node := m.Regions[1].Nodes[0]
	for _, server := range t.probedStun() {
		node.STUNPort = int(server.Port())
		if server.Addr().Is4() {
			node.IPv4 = server.Addr().String()
		} else {
			node.IPv6 = server.Addr().String()
		}
	}
	encoded, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding the DERP map: %w", err)
	}
	return os.WriteFile(path, encoded, 0o600)
}
