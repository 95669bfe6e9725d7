// The suite owns the registry of cases, runs them and prints their results.
// It must never look inside the protocol. Every case_*.go file adds to it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"sync"
	"time"
)

// caseSpec is one behaviour of the server, named as a claim about it.
type caseSpec struct {
	name string
	run  func(t *T)
	// slow cases wait for a timer of the server of 30 s or more and run only
	// under -slow.
	slow bool
	// last cases run alone after all others, to judge what those left behind.
	last bool
}

var cases []caseSpec

// register is called from init functions: the order of files fixes the order
// of the report.
func register(specs ...caseSpec) { cases = append(cases, specs...) }

// T is one running case. It is used from the goroutine that runs the case and
// from those started by gather, and by no other.
type T struct {
	target *target

	mu       sync.Mutex
	cleanups []func()
}

type failure struct{ reason string }
type skipping struct{ reason string }

func (t *T) failf(format string, args ...any) { panic(failure{fmt.Sprintf(format, args...)}) }
func (t *T) skipf(format string, args ...any) { panic(skipping{fmt.Sprintf(format, args...)}) }

// check fails the case when err is set; doing says what was being attempted.
func (t *T) check(err error, doing string, args ...any) {
	if err != nil {
		t.failf("%s: %v", fmt.Sprintf(doing, args...), err)
	}
}

func (t *T) onEnd(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

func (t *T) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}

// gather runs the given parts at the same time and fails the case with the
// first failure among them. A failing part ends the case's connections, so
// that the others do not wait for packets nobody will send.
func (t *T) gather(parts ...func()) {
	outcomes := make(chan any, len(parts))
	for _, part := range parts {
		go func() { outcomes <- outcomeOf(part) }()
	}
	var first any
	for range parts {
		if outcome := <-outcomes; outcome != nil && first == nil {
			first = outcome
			t.end()
		}
	}
	if first != nil {
		panic(first)
	}
}

// outcomeOf turns the panics of failf and skipf, and real ones, into values.
func outcomeOf(f func()) (outcome any) {
	defer func() {
		switch r := recover().(type) {
		case nil, failure, skipping:
			outcome = r
		default:
			outcome = failure{fmt.Sprintf("panic: %v\n%s", r, debug.Stack())}
		}
	}()
	f()
	return nil
}

type suite struct {
	target   *target
	filter   *regexp.Regexp
	slow     bool
	parallel int
	report   *reporter
}

func (s *suite) run() {
	slots := make(chan struct{}, max(1, s.parallel))
	var running sync.WaitGroup
	var last []caseSpec
	for _, c := range s.longestFirst() {
		if c.last {
			last = append(last, c)
			continue
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			s.runOne(c)
		})
	}
	running.Wait()
	for _, c := range last {
		s.runOne(c)
	}
}

// longestFirst puts the cases that wait for a long timer in front, because
// they decide how long the whole run takes.
func (s *suite) longestFirst() []caseSpec {
	var long, short []caseSpec
	for _, c := range cases {
		switch {
		case !s.filter.MatchString(c.name):
		case c.slow:
			long = append(long, c)
		default:
			short = append(short, c)
		}
	}
	return append(long, short...)
}

func (s *suite) runOne(c caseSpec) {
	started := time.Now()
	t := &T{target: s.target}
	outcome := outcomeOf(func() {
		if c.slow && !s.slow {
			t.skipf("waits for a long timer; give -slow to run it")
		}
		c.run(t)
	})
	t.end()
	s.report.add(c.name, outcome, time.Since(started))
}

// reporter prints results as they come and counts them.
type reporter struct {
	asJSON                  bool
	mu                      sync.Mutex
	passed, failed, skipped int
}

func newReporter(asJSON bool) *reporter { return &reporter{asJSON: asJSON} }

func (r *reporter) add(name string, outcome any, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	result, reason := "ok", ""
	switch o := outcome.(type) {
	case failure:
		r.failed++
		result, reason = "FAIL", o.reason
	case skipping:
		r.skipped++
		result, reason = "skip", o.reason
	default:
		r.passed++
	}
	if r.asJSON {
		r.line(map[string]any{"case": name, "result": result, "reason": reason, "seconds": took.Seconds()})
		return
	}
	if reason != "" {
		fmt.Printf("%s %s: %s\n", result, name, reason)
		return
	}
	fmt.Printf("%s %s %.2fs\n", result, name, took.Seconds())
}

func (r *reporter) totals(took time.Duration) {
	if r.asJSON {
		r.line(map[string]any{"passed": r.passed, "failed": r.failed, "skipped": r.skipped, "seconds": took.Seconds()})
		return
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}

func (r *reporter) line(v any) {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		fail("writing the report: %v", err)
	}
}
