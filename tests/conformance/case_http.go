// Cases about the pages around DERP on the TLS listener.
package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

const (
	upgradeRequired = "DERP requires connection upgrade\n"
	robots          = "User-agent: *\nDisallow: /\n"
	bogusMethod     = "bogus probe method\n"
	noCache         = "no-cache, no-store, must-revalidate, no-transform, max-age=0"
)

func init() {
	register(
		caseSpec{name: "http_derp_without_upgrade_is_426", run: derpWithoutUpgrade},
		caseSpec{name: "http_probe_and_latency_check", run: probePages},
		caseSpec{name: "http_generate_204", run: func(t *T) { t.generate204(t.target.httpClient(), "https://"+t.target.hostPort()) }},
		caseSpec{name: "http_bootstrap_dns", run: bootstrapDNS},
		caseSpec{name: "http_robots", run: robotsPage},
		caseSpec{name: "http_home_page_on_every_other_path", run: homePage},
		caseSpec{name: "http_connect_is_403", run: connectRefused},
		caseSpec{name: "http_requests_share_a_connection", run: requestsShareConnection},
		caseSpec{name: "http_garbage_head_is_refused", run: garbageHead},
		caseSpec{name: "http_oversized_head_is_refused", run: oversizedHead},
	)
}

// browserHeaders have to be on every page that a browser may show.
var browserHeaders = map[string]string{
	"Strict-Transport-Security": "max-age=63072000; includeSubDomains",
	"X-Frame-Options":           "DENY",
	"X-Content-Type-Options":    "nosniff",
}

type reply struct {
	*http.Response
	body string
}

// ask sends one request; headers come in pairs of name and value.
func (t *T) ask(client *http.Client, method, url string, headers ...string) reply {
	request, err := http.NewRequest(method, url, nil)
	t.check(err, "%s %s", method, url)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := client.Do(request)
	t.check(err, "%s %s", method, url)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	t.check(err, "%s %s: reading the body", method, url)
	return reply{response, string(body)}
}

func (t *T) askTLS(method, path string, headers ...string) reply {
	return t.ask(t.target.httpClient(), method, "https://"+t.target.hostPort()+path, headers...)
}

func (t *T) wantReply(r reply, status int, body string) {
	if r.StatusCode != status || r.body != body {
		t.failf("%s %s brought %d %q, want %d %q", r.Request.Method, r.Request.URL.Path, r.StatusCode, r.body, status, body)
	}
}

func (t *T) wantHeader(r reply, name, want string) {
	if got := r.Header.Get(name); got != want {
		t.failf("%s %s has header %s: %q, want %q", r.Request.Method, r.Request.URL.Path, name, got, want)
	}
}

func (t *T) wantBrowserHeaders(r reply) {
	for name, want := range browserHeaders {
		t.wantHeader(r, name, want)
	}
	if policy := r.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src") {
		t.failf("%s has the content security policy %q", r.Request.URL.Path, policy)
	}
}

func derpWithoutUpgrade(t *T) {
	for _, method := range []string{"GET", "POST", "PUT"} {
		r := t.askTLS(method, "/derp")
		t.wantReply(r, http.StatusUpgradeRequired, upgradeRequired)
		if kind := r.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/plain") {
			t.failf("the 426 has content type %q", kind)
		}
	}
	t.wantReply(t.askTLS("GET", "/derp", "Connection", "Upgrade", "Upgrade", "something"), http.StatusUpgradeRequired, upgradeRequired)
	t.wantReply(t.askTLS("GET", "/derp?x=1"), http.StatusUpgradeRequired, upgradeRequired)
}

func probePages(t *T) {
	for _, path := range []string{"/derp/probe", "/derp/latency-check"} {
		for _, method := range []string{"GET", "HEAD"} {
			r := t.askTLS(method, path)
			t.wantReply(r, http.StatusOK, "")
			t.wantHeader(r, "Access-Control-Allow-Origin", "*")
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
			t.wantReply(t.askTLS(method, path), http.StatusMethodNotAllowed, bogusMethod)
		}
	}
}

func (t *T) generate204(client *http.Client, base string) {
	const header = "X-Tailscale-Challenge"
	for _, method := range []string{"GET", "HEAD", "POST"} {
		r := t.ask(client, method, base+"/generate_204?t=1")
		t.wantReply(r, http.StatusNoContent, "")
		t.wantHeader(r, "Cache-Control", noCache)
		t.wantHeader(r, "X-Tailscale-Response", "")
	}
	for _, good := range []string{"x", "ts_192.0.2.1", "ts_2001:db8::1", "AZaz09._:-", strings.Repeat("a", 64)} {
		r := t.ask(client, "GET", base+"/generate_204", header, good)
		t.wantReply(r, http.StatusNoContent, "")
		t.wantHeader(r, "X-Tailscale-Response", "response "+good)
	}
	for _, bad := range []string{strings.Repeat("a", 65), "with space", "quo\"te", "semi;colon", "a/b", "ümlaut", "a,b", "a\tb"} {
		r := t.ask(client, "GET", base+"/generate_204", header, bad)
		t.wantReply(r, http.StatusNoContent, "")
		t.wantHeader(r, "X-Tailscale-Response", "")
	}
}

func bootstrapDNS(t *T) {
	for _, path := range []string{"/bootstrap-dns", "/bootstrap-dns?q=nobody.example"} {
		r := t.askTLS("GET", path)
		if r.StatusCode != http.StatusOK {
			t.failf("GET %s brought status %d", path, r.StatusCode)
		}
		t.wantBrowserHeaders(r)
		t.wantHeader(r, "Content-Type", "application/json")
		if !r.Close {
			t.failf("GET %s leaves the connection open", path)
		}
		var answer map[string][]string
		if r.body != "" {
			t.check(json.Unmarshal([]byte(r.body), &answer), "bootstrap DNS body %q", r.body)
		}
	}
}

func robotsPage(t *T) {
	r := t.askTLS("GET", "/robots.txt")
	t.wantReply(r, http.StatusOK, robots)
	t.wantBrowserHeaders(r)
}

func homePage(t *T) {
	for _, path := range []string{"/", "/nope", "/derp/", "/derp/x", "/derpx", "/generate_204x", "/index.html"} {
		r := t.askTLS("GET", path)
		if r.StatusCode != http.StatusOK {
			t.failf("GET %s brought status %d, want the home page", path, r.StatusCode)
		}
		if kind := r.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/html") {
			t.failf("GET %s has content type %q", path, kind)
		}
		if !strings.Contains(r.body, "DERP") {
			t.failf("GET %s brought %q, want a page that says what this is", path, r.body)
		}
		t.wantBrowserHeaders(r)
	}
}

// connectRefused names a destination that a relay must not dial even where it
// is set up as a way to the control plane.
func connectRefused(t *T) {
	s := t.bare()
	s.write([]byte("CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n"))
	s.readHead("403")
}

// requestsShareConnection also sends two requests before reading, which plain
// HTTP/1.1 allows.
func requestsShareConnection(t *T) {
	s := t.bare()
	request := []byte("GET /derp/probe HTTP/1.1\r\nHost: " + t.target.hostPort() + "\r\n\r\n")
	for range 3 {
		s.write(request)
		s.readHead("200")
	}
	s.write(append(request, request...))
	s.readHead("200")
	s.readHead("200")
}

func garbageHead(t *T) {
	witness := t.join()
	for _, head := range []string{"\r\n\r\n\x00\x01\x02\r\n\r\n", "GET\r\n\r\n", "GET /derp HTTP/9.9\r\n\r\n", "GET /derp HTTP/1.1\r\n bad\r\n\r\n", string(randomBytes(300)) + "\r\n\r\n"} {
		s := t.bare()
		_ = s.tryWrite([]byte(head))
		s.wantEnd()
	}
	witness.wantAlive()
}

// oversizedHead sends more header bytes than any client does; the server has
// to answer or close long before the end.
func oversizedHead(t *T) {
	witness := t.join()
	s := t.bare()
	_ = s.tryWrite([]byte("GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nX-Long: "))
	chunk := []byte(strings.Repeat("a", 64<<10))
	for range 64 {
		if s.tryWrite(chunk) != nil {
			break
		}
	}
	s.wantEnd()
	witness.wantAlive()
}
