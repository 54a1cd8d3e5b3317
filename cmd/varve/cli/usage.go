package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Checks of how many arguments there are; what names them to the user.

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("argument %q: the command takes none", args[0])
	}
	return nil
}

func oneArg(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s: give one %s", got(args), what)
		}
		return nil
	}
}

func atLeast(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < n {
			return fmt.Errorf("%s: give %s", got(args), what)
		}
		return nil
	}
}

func got(args []string) string {
	if len(args) == 0 {
		return "no argument"
	}
	return plural(len(args), "argument")
}

// wanted says what the values of a flag's type are.
var wanted = map[string]string{
	"bool":   "true or false",
	"int":    "a whole number",
	"uint32": "a whole number from 0",
	"uint64": "a whole number from 0",
}

// flagError says what is wrong with a flag in terms of the command line.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	return fmt.Errorf("--%s: %w", invalid.GetFlag().Name, valueError(invalid.GetFlag(), invalid.GetValue(), invalid.Unwrap()))
}

// valueError is what is wrong with a value for f, given the cause that f found.
func valueError(f *pflag.Flag, value string, cause error) error {
	if want := wanted[f.Value.Type()]; want != "" {
		return fmt.Errorf("%q is not %s", value, want)
	}
	if strings.HasPrefix(cause.Error(), strconv.Quote(value)) {
		return cause
	}
	return fmt.Errorf("%q %w", value, cause)
}
