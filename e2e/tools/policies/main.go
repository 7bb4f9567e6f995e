// policies enforces NetworkPolicies on a node: kube-network-policies decides, packet by packet. What sends it the packets is set up
// here, by the older NFQUEUE target: its own rules want a kernel with CONFIG_NFT_QUEUE, which not every machine of tests has.
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"log"
	"os/signal"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

const queue = 98

// rules send it what is about to leave for a pod or another machine, before any address is translated: new connections only, and none
// of the node's own, such as the kubelet's probes.
func rules() error {
	connection, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: "policies", Family: nftables.TableFamilyIPv4}
	connection.AddTable(table)
	connection.DelTable(table)
	connection.AddTable(table)
	chain := connection.AddChain(&nftables.Chain{
		Name:     "postrouting",
		Table:    table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource - 5),
	})
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	known := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	// struct xt_NFQ_info_v3: number, how many, flags; padded to eight bytes.
	info := xt.Unknown(binary.NativeEndian.AppendUint16(nil, queue))
	info = append(binary.NativeEndian.AppendUint16(info, 1), 0, 0, 0, 0)
	for _, expressions := range [][]expr.Any{
		{
			&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0, 0, 0}},
			accept,
		},
		{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: known, Xor: []byte{0, 0, 0, 0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0, 0}},
			accept,
		},
		{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}},
	} {
		connection.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: expressions})
	}
	return connection.Flush()
}

func run() error {
	kubeconfig := flag.String("kubeconfig", "", "file that leads to the API server")
	node := flag.String("node", "", "name of the node that it runs on")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return fmt.Errorf("the kubeconfig can't be used: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("no client can be made: %w", err)
	}
	if err := rules(); err != nil {
		return fmt.Errorf("the rules can't be made: %w", err)
	}
	context, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		factory.Networking().V1().NetworkPolicies(),
		factory.Core().V1().Namespaces(),
		factory.Core().V1().Pods(),
		nil, nil, nil, nil,
		networkpolicy.Config{QueueID: queue, NodeName: *node},
	)
	if err != nil {
		return fmt.Errorf("no controller can be made: %w", err)
	}
	factory.Start(context.Done())
	return controller.Run(context)
}

func main() {
	if err := run(); err != nil {
		log.Fatalf("error: %v", err)
	}
}
