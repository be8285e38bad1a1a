// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"strconv"
	"strings"

	"kmesh/helper/head"
	"kmesh/helper/mesh"
)

// Location returns where a redirect of a route with this match sends the request.
// The query is kept unless StripQuery, or Path brings its own. So is the port, unless
// there is another host or port, or it is the default of a scheme that is given up.
func Location(rd *mesh.Redirect, match *mesh.PathMatch, r *head.Request) string {
	scheme := rd.Scheme
	if scheme == "" {
		scheme = "http"
	}
	host, port := splitAuthority(r.Authority)
	switch {
	case rd.Host != "":
		host, port = rd.Host, ""
	case scheme != "http" && port == "80":
		port = ""
	}
	if rd.Port != 0 {
		port = strconv.Itoa(int(rd.Port))
	}
	if port != "" {
		port = ":" + port
	}
	query := ""
	if r.HasQuery && !rd.StripQuery && !strings.Contains(rd.Path, "?") {
		query = "?" + r.Query
	}
	path := r.Path
	if path == "*" { // OPTIONS of the server: it has no path
		path = "/"
	}
	switch {
	case rd.Path != "":
		path = rd.Path
	case rd.Prefix != "":
		path = rd.Prefix + path[matched(match, path):]
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return scheme + "://" + host + port + path + query
}

// matched is how much of the path the match is about.
func matched(match *mesh.PathMatch, path string) int {
	if match.Kind == mesh.PathRegex {
		return len(path)
	}
	return min(len(match.Value), len(path))
}

// splitAuthority is head.SplitHost with the host as sent.
func splitAuthority(authority string) (host, port string) {
	lower, port := head.SplitHost(authority)
	return authority[:len(lower)], port
}
