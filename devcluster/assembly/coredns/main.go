// CoreDNS with only the plugins that a cluster's DNS needs: Services and Pods by name, NXDOMAIN for the rest.
//
// A binary of its own, since its gRPC is newer than Kubernetes' and would recompile most of it.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

// The order of this list is the order of the plugin chain.
func init() {
	dnsserver.Directives = []string{
		"bind", "health", "ready", "prometheus", "errors", "log",
		"cache", "loadbalance", "template", "hosts", "kubernetes",
	}
}

func main() { coremain.Run() }
