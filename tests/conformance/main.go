// Conformance drives one running DERP server from outside, over the stock
// Tailscale client packages and over hand-written bytes, and reports what it
// saw case by case.
//
// It owns the list of behaviours a drop-in relay has to show. It must never
// know which server it talks to beyond the -stock flag, start or stop that
// server, or reach any address other than those it was given. The repository's
// test command and CI call it; a developer calls it with -run on one case.
package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
)

// Exit codes: a failed case and a server that cannot be reached at all need
// different reactions from whoever started the run.
const (
	exitFailed      = 1
	exitUnreachable = 2
)

func main() {
	var (
		rawURL    = flag.String("url", "", "address of the DERP endpoint, https://host:port/derp")
		certPin   = flag.String("cert-pin", "", "accept exactly this leaf, sha256-raw:<hex>")
		insecure  = flag.Bool("insecure", false, "accept any certificate")
		httpAddr  = flag.String("http-addr", "", "host:port of the plain HTTP listener; its cases are skipped without it")
		stunAddrs = flag.String("stun-addr", "", "host:port[,host:port] of the STUN listener; its cases are skipped without it")
		derpprobe = flag.String("derpprobe", "", "path of a stock derpprobe binary to run as one more case")
		stunc     = flag.String("stunc", "", "path of a stock stunc binary to run as one more case")
		pattern   = flag.String("run", "", "run only the cases whose name matches this regular expression")
		slow      = flag.Bool("slow", false, "also run the cases that wait for timers of 30 s and more")
		stock     = flag.Bool("stock", false, "the server is stock derper: skip what it is known not to do")
		asJSON    = flag.Bool("json", false, "print one JSON object a case and one for the totals")
		list      = flag.Bool("list", false, "print the names of the cases and stop")
		parallel  = flag.Int("parallel", 8, "how many cases run at once")
	)
	flag.Parse()

	filter, err := regexp.Compile(*pattern)
	if err != nil {
		fail("-run: %v", err)
	}
	if *list {
		for _, c := range cases {
			if filter.MatchString(c.name) {
				fmt.Println(c.name)
			}
		}
		return
	}

	target, err := newTarget(*rawURL, *certPin, *insecure)
	if err != nil {
		fail("%v", err)
	}
	target.plainHTTP = *httpAddr
	target.stock = *stock
	target.derpprobe, target.stunc = *derpprobe, *stunc
	if *stunAddrs != "" {
		if target.stun, err = parseStunAddrs(strings.Split(*stunAddrs, ",")); err != nil {
			fail("-stun-addr: %v", err)
		}
	}
	if err := target.learnServerKey(); err != nil {
		fail("no DERP server at %s: %v", *rawURL, err)
	}

	started := time.Now()
	s := suite{target: target, filter: filter, slow: *slow, parallel: *parallel, report: newReporter(*asJSON)}
	s.run()
	s.report.totals(time.Since(started))
	if s.report.failed > 0 {
		os.Exit(exitFailed)
	}
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "conformance: "+format+"\n", args...)
	os.Exit(exitUnreachable)
}
