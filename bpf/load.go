// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// LoadOptions configure Load.
type LoadOptions struct {
	// BPFFS is the directory to pin below; DefaultBPFFS if empty.
	BPFFS string
	// MaxEntries overrides the sizes of maps.h by map name. It has an effect only
	// on maps that are not pinned yet.
	MaxEntries map[string]uint32
	// FlowsPerPod is the most HTTP connections that one pod may have open. 0 leaves
	// what the maps have, which is DefaultFlowsPerPod in new ones. It holds for the
	// next connections.
	FlowsPerPod uint32
	// PoisonHolds overwrites held bytes when they are given up, for tests: a later
	// reader sees them. It has an effect only on maps that are not pinned yet.
	PoisonHolds bool
	// Statistics has every program keep what the verifier says of it (VerifierLog).
	Statistics bool
	// Edition, for tests of an update: programs of another edition differ from these in
	// an instruction that does nothing.
	Edition uint32
}

// DefaultFlowsPerPod bounds what one pod can take of km_flows.
const DefaultFlowsPerPod = 16384

// Runtime is the loaded kernel half: the pinned maps and programs, opened.
type Runtime struct {
	// BPFFS is the directory that everything is pinned below.
	BPFFS string

	Frontends *ebpf.Map // FrontendKey -> service id
	Prefixes  *ebpf.Map // PrefixKey -> service id
	Services  *ebpf.Map // id -> Service
	Clusters  *ebpf.Map // id -> Cluster
	Slots     *ebpf.Map // index -> Slot; see SlotMemory
	Endpoints *ebpf.Map // id -> Endpoint
	Active    *ebpf.Map // endpoint id -> open connections
	Stats     *ebpf.Map // StatsKey -> Stats
	Refusals  *ebpf.Map // RefusalKey -> count
	Names     *ebpf.Map // id -> Name
	// Connections are those of pods to clusters that bound them: ConnectionsKey -> Connections.
	Connections *ebpf.Map

	HTTP      *ebpf.Map // service id -> HTTP
	Guesses   *ebpf.Map // FrontendKey -> cluster id
	Hosts     *ebpf.Map // HostKey -> virtual host id
	LongHosts *ebpf.Map // LongHostKey -> virtual host id
	VHosts    *ebpf.Map // id -> VHost; VHostResponse is the grammar of responses
	Replies   *ebpf.Map // id -> Reply
	Requests  *ebpf.Map // RequestKey -> RequestStats
	Events    *ebpf.Map // index -> count
	Trace     *ebpf.Map // ring buffer of TraceRecord

	// EachNetns runs a function in the network namespace of every enrolled pod. Who
	// has pods sets it: Sockets needs it where FeatureMapIterator is unsupported.
	EachNetns func(func() error) error

	// Replaced names the hooks whose pinned program was replaced by this load:
	// links that still run the old one are to be updated.
	Replaced []string
	// Unsupported names features that this kernel lacks, with the reason.
	Unsupported map[string]error

	state  *ebpf.Map
	memory map[string][]byte // of the maps in memoryMaps
	maps   map[string]*ebpf.Map
	progs  map[string]*ebpf.Program

	verifier ebpf.LogLevel
	edition  uint32
	quota    uint32
	fresh    bool // no helper of this layout was here before
}

// Load opens what is pinned, creates and pins what is not, and replaces pinned
// programs that differ from the ones built in. It changes no map's content, so it
// is safe under traffic.
//
// No memlock limit is raised: since Linux 5.11 maps are charged to the memory
// cgroup. Package ebpf/rlimit must not even be imported: its init calls bpf(2), in
// the plugin too, where pods that are not enrolled must not cost that.
func Load(opts LoadOptions) (_ *Runtime, err error) {
	if opts.BPFFS == "" {
		opts.BPFFS = DefaultBPFFS
	}
	if opts.Edition == 0 {
		opts.Edition = number(edition)
	}
	if err := CheckBPFFS(opts.BPFFS); err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Dir(MapPath(opts.BPFFS, "x")), filepath.Dir(ProgPath(opts.BPFFS, "x"))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("bpffs: %w", err)
		}
	}
	r := &Runtime{
		BPFFS:       opts.BPFFS,
		Unsupported: make(map[string]error),
		maps:        make(map[string]*ebpf.Map),
		memory:      make(map[string][]byte),
		progs:       make(map[string]*ebpf.Program),
		edition:     opts.Edition,
	}
	if opts.Statistics {
		r.verifier = ebpf.LogLevelStats
	}
	defer func() {
		if err != nil {
			r.Close()
		}
	}()
	if err := r.loadMaps(opts.MaxEntries); err != nil {
		return nil, err
	}
	if err := r.mapMemory(); err != nil {
		return nil, err
	}
	r.initLimits(opts.FlowsPerPod, opts.PoisonHolds)
	if err := r.loadPrograms(); err != nil {
		return nil, err
	}
	return r, r.initState()
}

// initState makes the state word say that programs are there; a word that is
// already there is kept: a restart under traffic stays live.
func (r *Runtime) initState() error {
	st, err := r.State()
	if err != nil {
		return err
	}
	if st.ABI == 0 {
		r.fresh = true
		return r.SetState(PhaseLoaded, 0, 1)
	}
	return nil
}

func (r *Runtime) loadMaps(sizes map[string]uint32) error {
	specs, err := loadAbi()
	if err != nil {
		return fmt.Errorf("built-in maps: %w", err)
	}
	for field, name := range map[**ebpf.Map]string{
		&r.state: "km_state", &r.Frontends: "km_frontends", &r.Prefixes: "km_prefixes",
		&r.Services: "km_services", &r.Clusters: "km_clusters", &r.Slots: "km_slots",
		&r.Endpoints: "km_endpoints", &r.Active: "km_active", &r.Stats: "km_stats",
		&r.Refusals: "km_refusals", &r.Names: "km_names", &r.Connections: "km_connections",
		new(*ebpf.Map): "km_pods", new(*ebpf.Map): "km_stamps", new(*ebpf.Map): "km_udp_peers",
		&r.HTTP: "km_http", &r.Guesses: "km_guesses", &r.Hosts: "km_hosts", &r.LongHosts: "km_long_hosts", &r.VHosts: "km_vhosts",
		&r.Replies: "km_replies", &r.Requests: "km_requests", &r.Events: "km_events", &r.Trace: "km_trace",
		new(*ebpf.Map): "km_slabs", new(*ebpf.Map): "km_routes", new(*ebpf.Map): "km_shares",
		new(*ebpf.Map): "km_limits", new(*ebpf.Map): "km_flows", new(*ebpf.Map): "km_tuples",
		new(*ebpf.Map): "km_legs", new(*ebpf.Map): "km_tombstones", new(*ebpf.Map): "km_over", new(*ebpf.Map): "km_ended", new(*ebpf.Map): "km_quotas",
		new(*ebpf.Map): "km_older_tc_ingress", new(*ebpf.Map): "km_older_tc_egress",
		new(*ebpf.Map): "km_older_getpeername4", new(*ebpf.Map): "km_older_getpeername6",
		new(*ebpf.Map): "km_older_recvmsg4", new(*ebpf.Map): "km_older_recvmsg6", new(*ebpf.Map): "km_older_sock_ops",
		new(*ebpf.Map): "km_holds", new(*ebpf.Map): "km_free_holds", new(*ebpf.Map): "km_marks",
	} {
		spec := specs.Maps[name]
		if spec == nil {
			return fmt.Errorf("built-in maps: no map %s", name)
		}
		if n, ok := sizes[name]; ok {
			spec.MaxEntries = n
		}
		m, err := openOrCreateMap(MapPath(r.BPFFS, name), spec)
		if err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
		r.maps[name] = m
		*field = m
	}
	return nil
}

// openOrCreateMap opens a pinned map, whatever its size, or creates and pins it.
func openOrCreateMap(path string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		spec.MaxEntries = m.MaxEntries()
		if err := spec.Compatible(m); err != nil {
			m.Close()
			return nil, fmt.Errorf("pinned with another layout under the same ABI number, run 'kmesh-helper uninstall' when no pod needs it: %w", err)
		}
		return m, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, err
	}
	if err := m.Pin(path); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// memoryMaps are read and written in place.
var memoryMaps = []string{"km_slots", "km_slabs", "km_routes", "km_shares", "km_flows", "km_limits"}

// mapMemory maps them. The mappings are made by hand, and not by Map.Memory, so that
// Close can end them: a mapping keeps the map alive.
func (r *Runtime) mapMemory() error {
	for _, name := range memoryMaps {
		m := r.maps[name]
		page := os.Getpagesize()
		size := (int(m.MaxEntries())*int(m.ValueSize()) + page - 1) / page * page
		if m.ValueSize()%8 != 0 {
			return fmt.Errorf("map %s: elements of %d bytes: the kernel has each begin at a multiple of 8, what is read in place does not", name, m.ValueSize())
		}
		mem, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map %s: mmap: %w", name, err)
		}
		r.memory[name] = mem
	}
	return nil
}

// SlotMemory is the content of km_slots, to be read and written in place: one Slot
// after the other. It is valid until Close, as are the others.
func (r *Runtime) SlotMemory() []byte { return r.memory["km_slots"] }

// SlabMemory is the content of km_slabs: slabs of SlabSize bytes, one after the other.
func (r *Runtime) SlabMemory() []byte { return r.memory["km_slabs"] }

// Routes is the content of km_routes.
func (r *Runtime) Routes() []Route { return inPlace[Route](r.memory["km_routes"]) }

// Shares is the content of km_shares.
func (r *Runtime) Shares() []Share { return inPlace[Share](r.memory["km_shares"]) }

// Flows is the content of km_flows, which the programs write meanwhile.
func (r *Runtime) Flows() []Flow { return inPlace[Flow](r.memory["km_flows"]) }

func inPlace[T any](mem []byte) []T {
	var t T
	return unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), len(mem)/int(unsafe.Sizeof(t)))
}

// initLimits tells the programs how much there is, once: what they count in the same
// element lives as long as the maps.
func (r *Runtime) initLimits(quota uint32, poison bool) {
	l := &inPlace[abiLimits](r.memory["km_limits"])[0]
	if quota == 0 {
		if quota = l.Quota; quota == 0 {
			quota = DefaultFlowsPerPod
		}
	}
	r.quota = quota
	if l.Flows != 0 {
		// 0 stays: another layout has taken over, and this one makes no new flows.
		if l.Quota != 0 {
			l.Quota = quota
		}
		return
	}
	l.Holds, l.Quota = r.maps["km_holds"].MaxEntries(), quota
	if poison {
		l.Poison = 1
	}
	l.Flows = r.maps["km_flows"].MaxEntries()
}

// hookObjects are the objects whose programs are pinned, one per hook.
var hookObjects = []func() (*ebpf.CollectionSpec, error){
	loadConnect, loadSendmsg, loadRecvmsg, loadGetpeername, loadSockOps, loadTcIngress, loadTcEgress,
}

func (r *Runtime) loadPrograms() error {
	for _, load := range hookObjects {
		progs, err := r.loadObject(func() (*ebpf.CollectionSpec, error) {
			spec, err := load()
			return changed(spec, r.edition), err
		})
		if err != nil {
			return err
		}
		for name, p := range progs {
			if err := r.pinProgram(name, p); err != nil {
				return err
			}
		}
	}
	for _, h := range append(append([]Hook(nil), CgroupHooks...), TCHooks...) {
		if r.progs[h.Name] == nil {
			return fmt.Errorf("built-in programs: none for hook %s", h.Name)
		}
	}
	return r.loadIterators()
}

// loadObject loads one object against the pinned maps; without are programs to
// leave out.
func (r *Runtime) loadObject(load func() (*ebpf.CollectionSpec, error), without ...string) (map[string]*ebpf.Program, error) {
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("built-in programs: %w", err)
	}
	for _, name := range without {
		delete(spec.Programs, name)
	}
	replace := make(map[string]*ebpf.Map)
	for name := range spec.Maps {
		if m := r.maps[name]; m != nil {
			replace[name] = m
			spec.Maps[name].MaxEntries = m.MaxEntries()
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Programs:        ebpf.ProgramOptions{LogLevel: r.verifier},
		MapReplacements: replace,
	})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	defer coll.Close()
	progs := make(map[string]*ebpf.Program)
	for name := range spec.Programs {
		progs[name] = coll.DetachProgram(name)
	}
	return progs, nil
}

// Program returns the program of a hook.
func (r *Runtime) Program(hook string) (*ebpf.Program, error) {
	p := r.progs[hook]
	if p == nil {
		return nil, fmt.Errorf("no program for hook %s", hook)
	}
	return p, nil
}

// Map returns a map by name, nil if there is none.
func (r *Runtime) Map(name string) *ebpf.Map { return r.maps[name] }

// MapNames returns the names of all maps that have a capacity to watch.
func (r *Runtime) MapNames() []string {
	return []string{"km_pods", "km_frontends", "km_prefixes", "km_services", "km_clusters",
		"km_slots", "km_endpoints", "km_active", "km_connections", "km_stats", "km_refusals", "km_names",
		"km_http", "km_guesses", "km_hosts", "km_long_hosts", "km_vhosts", "km_replies", "km_tuples", "km_legs",
		"km_quotas", "km_requests"}
}

// Close releases the handles; everything pinned stays.
func (r *Runtime) Close() error {
	var errs []error
	for _, mem := range r.memory {
		errs = append(errs, unix.Munmap(mem))
	}
	clear(r.memory)
	for _, m := range r.maps {
		errs = append(errs, m.Close())
	}
	for _, p := range r.progs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Unpin removes the programs and maps of every layout from the bpffs. Links that pods
// hold keep their programs; see package netns for those.
func Unpin(bpffs string) error {
	if err := CheckBPFFS(bpffs); err != nil {
		return err
	}
	all, err := Others(bpffs)
	if err != nil {
		return err
	}
	for _, dir := range append(dirs(all), Dir(bpffs)) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("bpffs: %w", err)
		}
	}
	return nil
}
