package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/varve-net/varve/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var opts demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See varve do its main job on real packets (as root)",
		Long: strings.TrimSpace(`
Run an agent beside any other, connect workloads with real servers, protect them,
kill the agent under running traffic and start it again. It leaves nothing behind.
The exit code is 0 only if all that is claimed held.`),
		Example: "  varve demo",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.Out, opts.NoColor = a.stdout, a.noColor
			if code := runDemo(cmd.Context(), opts); code != exitYes {
				return &exitError{code: code}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&opts.Keep, "keep", false, "keep the agent, its namespaces and files for a look around")
	return cmd
}
