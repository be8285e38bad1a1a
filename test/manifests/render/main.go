// SPDX-License-Identifier: Apache-2.0

// Command render prints what the chart or the kustomize base installs, for whoever has
// neither helm nor kubectl.
package main

import (
	"flag"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"

	"kmesh/test/manifests"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

func run() error {
	base := flag.Bool("base", false, "the kustomize base instead of the chart")
	dir := flag.String("manifests", "../../manifests", "folder of base and chart")
	file := flag.String("values", "", "file of values for the chart")
	release := manifests.Default
	flag.StringVar(&release.Name, "name", release.Name, "of the release")
	flag.StringVar(&release.Namespace, "namespace", release.Namespace, "of the release")
	flag.Parse()
	if *base {
		out, err := manifests.Base(*dir + "/base")
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(out)
		return err
	}
	values := map[string]any{}
	if *file != "" {
		raw, err := os.ReadFile(*file)
		if err != nil {
			return err
		}
		if err := yaml.UnmarshalStrict(raw, &values); err != nil {
			return fmt.Errorf("%s: %w", *file, err)
		}
	}
	out, err := manifests.Chart(*dir+"/chart", release, values)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(out)
	return err
}
