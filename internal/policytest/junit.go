package policytest

import (
	"encoding/xml"
	"fmt"
	"io"
	"time"
)

// The XML that CI systems read as JUnit's: a suite a file, a test case a case. What
// is refused is skipped.
type (
	junitSuites struct {
		XMLName  xml.Name      `xml:"testsuites"`
		Name     string        `xml:"name,attr"`
		Tests    int           `xml:"tests,attr"`
		Failures int           `xml:"failures,attr"`
		Skipped  int           `xml:"skipped,attr"`
		Time     string        `xml:"time,attr"`
		Suites   []*junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`
		took     time.Duration
	}
	junitCase struct {
		Name      string       `xml:"name,attr"`
		Classname string       `xml:"classname,attr"`
		File      string       `xml:"file,attr"`
		Line      int          `xml:"line,attr"`
		Time      string       `xml:"time,attr"`
		Failure   *junitDetail `xml:"failure"`
		Skipped   *junitDetail `xml:"skipped"`
	}
	junitDetail struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes a report as JUnit XML.
func WriteJUnit(w io.Writer, r *Report) error {
	out := junitSuites{
		Name: "varve policy test, engine " + r.Engine, Tests: r.Cases, Failures: r.Failed, Skipped: r.Refused,
		Time: junitSeconds(time.Duration(r.Nanoseconds)),
	}
	for _, one := range r.Results {
		n := len(out.Suites)
		if n == 0 || out.Suites[n-1].Name != one.File {
			out.Suites = append(out.Suites, &junitSuite{Name: one.File})
			n++
		}
		out.Suites[n-1].add(one)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(out); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (s *junitSuite) add(r Result) {
	c := junitCase{
		Name: r.Case, Classname: r.File, File: r.File, Line: r.Line, Time: junitSeconds(time.Duration(r.Nanoseconds)),
	}
	if r.Desc != "" {
		c.Name += ": " + r.Desc
	}
	switch r.Outcome {
	case Fail:
		s.Failures++
		c.Failure = &junitDetail{r.Reason, "\n" + r.Difference}
	case Refused:
		s.Skipped++
		c.Skipped = &junitDetail{Message: r.Reason}
	}
	s.Tests++
	s.took += time.Duration(r.Nanoseconds)
	s.Time = junitSeconds(s.took)
	s.Cases = append(s.Cases, c)
}

func junitSeconds(d time.Duration) string { return fmt.Sprintf("%.6f", d.Seconds()) }
