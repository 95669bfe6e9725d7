// Cases about the plain HTTP listener, which captive-portal detection asks.
package main

import (
	"net"
	"net/http"
	"strings"
	"time"
)

func init() {
	register(
		caseSpec{name: "plain_http_generate_204", run: plainGenerate204},
		caseSpec{name: "plain_http_redirects_to_https", run: plainRedirects},
		caseSpec{name: "plain_http_other_methods_are_400", run: plainOtherMethods},
	)
}

// plain returns a client that shows redirects instead of following them, and
// the base of the plain listener's URLs.
func (t *T) plain() (*http.Client, string) {
	if t.target.plainHTTP == "" {
		t.skipf("no -http-addr given")
	}
	client := &http.Client{
		Timeout:       dialTimeout,
		Transport:     &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: 5 * time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return client, "http://" + t.target.plainHTTP
}

func plainGenerate204(t *T) {
	client, base := t.plain()
	t.generate204(client, base)
}

func plainRedirects(t *T) {
	client, base := t.plain()
	for _, path := range []string{"/derp", "/derp/probe", "/nope", "/derp?x=1&y=2", "/robots.txt"} {
		for _, method := range []string{"GET", "HEAD"} {
			r := t.ask(client, method, base+path)
			if r.StatusCode != http.StatusFound {
				t.failf("%s %s brought status %d, want 302", method, path, r.StatusCode)
			}
			t.wantHTTPS(r.Header.Get("Location"), path)
		}
	}
}

func plainOtherMethods(t *T) {
	client, base := t.plain()
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		t.wantReply(t.ask(client, method, base+"/derp"), http.StatusBadRequest, "Use HTTPS\n")
	}
}

// wantHTTPS checks a redirection: the same host and path over TLS. Stock derper keeps the plain
// port in the address, which only works where ports are the usual ones; naming the TLS port is as good.
func (t *T) wantHTTPS(location, path string) {
	host, _, err := net.SplitHostPort(t.target.plainHTTP)
	if err != nil {
		t.failf("plain HTTP address %q: %v", t.target.plainHTTP, err)
	}
	rest, ok := strings.CutPrefix(location, "https://"+host)
	if _, after, found := strings.Cut(rest, "/"); !ok || !found || "/"+after != path {
		t.failf("the redirection goes to %q, want https://%s[:port]%s", location, host, path)
	}
}
