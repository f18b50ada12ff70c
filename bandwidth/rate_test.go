// SPDX-License-Identifier: Apache-2.0

package bandwidth

import (
	"errors"
	"strings"
	"testing"

	"gopkg.in/inf.v0"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]struct {
		rate      Rate
		canonical string
	}{
		"10M":             {10 * Megabit, "10M"},
		"1k":              {Kilobit, "1k"},
		"1P":              {Petabit, "1P"},
		"1500k":           {1500 * Kilobit, "1500k"},
		"1.5M":            {1500 * Kilobit, "1500k"},
		"10000000":        {10 * Megabit, "10M"},
		"10e6":            {10 * Megabit, "10M"},
		"10E6":            {10 * Megabit, "10M"},
		"1e+7":            {10 * Megabit, "10M"},
		"100000e-1":       {10 * Kilobit, "10k"},
		"+10M":            {10 * Megabit, "10M"},
		"010M":            {10 * Megabit, "10M"},
		"10.M":            {10 * Megabit, "10M"},
		".5G":             {500 * Megabit, "500M"},
		"1Ki":             {1024, "1024"},
		"1Mi":             {1048576, "1048576"},
		"0.5Ti":           {549755813888, "549755813888"},
		"10000000000m":    {10 * Megabit, "10M"},
		"10000000000000u": {10 * Megabit, "10M"},
		"1001":            {1001, "1001"},
		"999999999999999": {999999999999999, "999999999999999"},
	} {
		t.Run(text, func(t *testing.T) {
			got, err := Parse(text)
			if err != nil {
				t.Fatalf("Parse(%q): %v", text, err)
			}
			if got != want.rate || got.String() != want.canonical {
				t.Errorf("Parse(%q) = %d, printed %q; want %d, %q", text, got, got, want.rate, want.canonical)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]error{
		"":                      ErrSyntax,
		"10 megabits":           ErrSyntax,
		"10Mbps":                ErrSyntax,
		" 10M":                  ErrSyntax,
		"10M ":                  ErrSyntax,
		"10K":                   ErrSyntax,
		"ten":                   ErrSyntax,
		"1.2.3M":                ErrSyntax,
		"0x10":                  ErrSyntax,
		"1_000_000":             ErrSyntax,
		"1/2M":                  ErrSyntax,
		"NaN":                   ErrSyntax,
		"Inf":                   ErrSyntax,
		"1e":                    ErrSyntax,
		"1e999999999999":        ErrSyntax,
		strings.Repeat("1", 65): ErrSyntax,
		"-1M":                   ErrNegative,
		"10m":                   ErrTooSmall,
		"0":                     ErrTooSmall,
		"-0":                    ErrTooSmall,
		"999":                   ErrTooSmall,
		"999.9999999999":        ErrTooSmall,
		"1000.5":                ErrFractional,
		"1000.9999999999999":    ErrFractional, // ParseQuantity rounds it up to 1001
		"1000001m":              ErrFractional,
		"1E":                    ErrTooLarge,
		"1Pi":                   ErrTooLarge,
		"1000000000000001":      ErrTooLarge,
		"9223372036854775808":   ErrTooLarge,
	} {
		t.Run(text, func(t *testing.T) {
			got, err := Parse(text)
			if !errors.Is(err, want) {
				t.Fatalf("Parse(%q) = %d, %v; want the reason %q", text, got, err, want)
			}
			var parseErr *ParseError
			if !errors.As(err, &parseErr) || parseErr.Text != text {
				t.Errorf("Parse(%q): error %#v does not carry the text", text, err)
			}
			if msg := err.Error(); !strings.Contains(msg, Example) || len(msg) > 300 {
				t.Errorf("message of %d characters, wants the example %q: %s", len(msg), Example, msg)
			}
		})
	}
}

func TestHint(t *testing.T) {
	for text, want := range map[string]string{
		"10m":         `write "10M"`,
		"10 megabits": `did you mean "10M"?`,
		"10Mbit/s":    `did you mean "10M"?`,
		"5gbps":       `did you mean "5G"?`,
		"10K":         `did you mean "10k"?`,
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v; want the hint %q", text, err, want)
		}
	}
}

// The short way reads nothing that the long one reads differently, and all that is canonical.
func TestPlain(t *testing.T) {
	texts := []string{"", "k", "P", "0", "0k", "999", "1000", "0001000", "1M", "10M", "1500k", "999T", "1000T", "1001T", "1P", "2P", "9999999999999999",
		"1000000000000000", "1000000000000001", "99999999999999999", "9999999999999999k", "18446744073709552616", "1E", "1Ki", "10m", "+5M", "-5M", "1.5M", "1e6", "5M ", "5MM", "٣M"}
	for _, text := range texts {
		rate, ok := plain(text)
		exact, err := parseExact(text)
		if ok && (err != nil || exact != rate) {
			t.Errorf("%q: %d by the short way, %d, %v by the long one", text, rate, exact, err)
		}
		if !ok && err == nil && exact.String() == text {
			t.Errorf("%q is canonical and took the long way", text)
		}
	}
}

// FuzzParse holds Parse against apimachinery's parser: never a panic, never a changed value, and whatever
// Kubernetes reads exactly as a rate within the bounds is accepted.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"10M", "1.5G", "10e6", "1Ki", "-1M", "10m", "1000.9999999999999", "1e99", "+.5E", "10 megabits", "1P", "1E"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rate, err := Parse(text)
		if err != nil {
			if msg := err.Error(); !strings.Contains(msg, Example) {
				t.Fatalf("no example in %q", msg)
			}
		} else {
			again, err := Parse(rate.String())
			if err != nil || again != rate {
				t.Fatalf("%q → %d → %q → %d, %v", text, rate, rate, again, err)
			}
			if strings.ContainsAny(rate.String(), "+-eEmi.") {
				t.Fatalf("%q is not canonical", rate)
			}
		}
		if !oracleCanRead(text) {
			return
		}
		q, qerr := resource.ParseQuantity(text)
		if qerr != nil {
			if err == nil {
				t.Fatalf("%q accepted as %d, Kubernetes refuses it: %v", text, rate, qerr)
			}
			return
		}
		whole := new(inf.Dec).Round(q.AsDec(), 0, inf.RoundDown)
		if err == nil && (whole.Cmp(q.AsDec()) != 0 || whole.Cmp(inf.NewDec(int64(rate), 0)) != 0) {
			t.Fatalf("%q parsed as %d, Kubernetes reads %s", text, rate, q.AsDec())
		}
		exact := whole.Cmp(q.AsDec()) == 0 && !errors.Is(err, ErrFractional)
		if inBounds := whole.Cmp(inf.NewDec(1000, 0)) >= 0 && whole.Cmp(inf.NewDec(1e15, 0)) <= 0; err != nil && exact && inBounds && !errors.Is(err, ErrTooSmall) {
			t.Fatalf("%q refused (%v), Kubernetes reads %s", text, err, whole)
		}
	})
}

// oracleCanRead keeps texts away from ParseQuantity that cost it seconds (huge exponents), and those that are
// longer than any rate.
func oracleCanRead(text string) bool {
	if len(text) > maxTextLength {
		return false
	}
	i := strings.LastIndexAny(text, "eE")
	return i < 0 || len(strings.TrimLeft(text[i+1:], "+-0")) <= 2
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse("1500k"); err != nil {
			b.Fatal(err)
		}
	}
}
