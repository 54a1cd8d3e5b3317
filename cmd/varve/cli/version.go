package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/varve-net/varve/internal/version"
)

func (a *app) versionCommand() *cobra.Command {
	return a.withOutput(&cobra.Command{
		Use:   "version",
		Short: "Say which varve this is",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := version.Get()
			if a.output != formatTable {
				doc, err := json.Marshal(v)
				if err != nil {
					return err
				}
				return a.printJSON(doc)
			}
			fmt.Fprintf(a.stdout, "varve %s", v.Version)
			if v.Commit != "" {
				fmt.Fprintf(a.stdout, ", commit %.12s", v.Commit)
				if v.Modified {
					fmt.Fprint(a.stdout, " with changes")
				}
			}
			fmt.Fprintf(a.stdout, ", %s, %s\n", v.Go, v.Platform)
			return nil
		},
	})
}
