package apiserver

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestJSONOverHTTP(t *testing.T) {
	k := newKit(t)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", k.socket)
	}}}
	defer client.CloseIdleConnections()
	for _, tt := range []struct {
		name, method, body string
		status             int
		want               string // in the answer
	}{
		{"a read", "IdentityService/List", `{"reserved":true}`, 200, `"reserved:host"`},
		{"an append", "LogService/Append", `{"events":[{"namespaceSet":{"name":"shop","labels":{"a":"b"}}}]}`, 200, `"OUTCOME_APPLIED"`},
		{"a field that is not there", "EndpointService/Add", `{"name":"x","adresses":["10.1.0.9"]}`, 400, "adresses"},
		{"a nested one", "LogService/Append", `{"events":[{"namespaceSet":{"nam":"shop"}}]}`, 400, "nam"},
		{"no JSON", "IdentityService/List", `{`, 400, "invalid_argument"},
		{"no body", "IdentityService/List", ``, 400, "{}"},
		{"no method", "IdentityService/Nothing", `{}`, 404, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := client.Post("http://varve/varve.v1."+tt.method, "application/json", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(string(got), tt.want) {
				t.Errorf("status %d, %s; want %d and %q", resp.StatusCode, got, tt.status, tt.want)
			}
		})
	}
}
