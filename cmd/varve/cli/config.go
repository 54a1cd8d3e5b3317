package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// configFlag names the file of settings. It is itself a flag, or VARVE_CONFIG.
const configFlag = "config"

const envPrefix = "VARVE_"

// keyDelimiter can stand in no key, so that "a.b" is one unknown key and not two.
const keyDelimiter = "\x00"

// envName is where the environment has a setting: VARVE_STATE_DIR for state-dir.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// loadConfig sets the flags that the command line did not: from the environment,
// and then from the file. The flags parse the values, so each setting has one
// syntax and one default. Errors name the place and the setting. Settings of the
// file that others are for are left to them.
func loadConfig(flags *pflag.FlagSet, others ...string) error {
	settings := map[string]string{} // by the name in the environment
	flags.VisitAll(func(f *pflag.Flag) {
		if isSetting(f) {
			settings[envName(f.Name)] = f.Name
		}
	})

	environ := koanf.New(keyDelimiter)
	err := environ.Load(env.Provider(keyDelimiter, env.Opt{
		Prefix: envPrefix,
		TransformFunc: func(name, value string) (string, any) {
			if value == "" {
				return "", nil
			}
			return settings[name], value
		},
	}), nil)
	if err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	if err := setFlags(flags, environ, envName, nil); err != nil {
		return err
	}

	path := flags.Lookup(configFlag).Value.String()
	file, err := readConfig(path, flags.Changed(configFlag))
	if err != nil {
		return err
	}
	return setFlags(flags, file, func(key string) string { return path + ": " + key }, others)
}

// readConfig reads the file, which may be missing unless it was asked for.
func readConfig(path string, must bool) (*koanf.Koanf, error) {
	k := koanf.New(keyDelimiter)
	doc, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", configFlag, err)
	}
	if err := k.Load(rawbytes.Provider(doc), yaml.Parser()); err != nil {
		text := strings.Join(strings.Fields(err.Error()), " ")
		return nil, fmt.Errorf("%s: %s; write one `setting: value` a line", path, text)
	}
	if k.Exists(configFlag) {
		return nil, fmt.Errorf("%s: %s: is not read from the file; leave it out", path, configFlag)
	}
	return k, nil
}

// setFlags sets each flag of k that is not set yet. place names a key's origin.
func setFlags(flags *pflag.FlagSet, k *koanf.Koanf, place func(key string) string, others []string) error {
	keys := k.Keys()
	slices.Sort(keys)
	for _, key := range keys {
		f := flags.Lookup(key)
		if f == nil && slices.Contains(others, key) {
			continue
		}
		if f == nil || !isSetting(f) {
			name := strings.ReplaceAll(key, keyDelimiter, ".")
			return fmt.Errorf("%s: is no setting%s", place(name), nearest(flags, name))
		}
		if f.Changed {
			continue
		}
		if err := setFlag(f, k.Get(key)); err != nil {
			return fmt.Errorf("%s: %w", place(key), err)
		}
	}
	return nil
}

func setFlag(f *pflag.Flag, value any) error {
	var text string
	switch v := value.(type) {
	case nil:
		return errors.New("has no value")
	case []any:
		if _, ok := f.Value.(pflag.SliceValue); !ok {
			return errors.New("is a list; give one value")
		}
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = fmt.Sprint(item)
		}
		text = strings.Join(items, ",")
	case map[string]any:
		return errors.New("is a mapping; give one value")
	default:
		text = fmt.Sprint(v)
	}
	if err := f.Value.Set(text); err != nil {
		return valueError(f, text, err)
	}
	f.Changed = true
	return nil
}

// nearest suggests the setting that was meant.
func nearest(flags *pflag.FlagSet, key string) string {
	want := strings.ReplaceAll(strings.ToLower(key), "_", "-")
	var names []string
	flags.VisitAll(func(f *pflag.Flag) {
		if isSetting(f) && f.Name != configFlag {
			names = append(names, f.Name)
		}
	})
	if slices.Contains(names, want) {
		return fmt.Sprintf("; did you mean %q?", want)
	}
	return "; known are " + strings.Join(names, ", ")
}

// isSetting is false for the flags that are about one command line.
func isSetting(f *pflag.Flag) bool { return f.Name != "help" && f.Name != "no-color" }
