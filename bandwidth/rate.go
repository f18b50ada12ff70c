// SPDX-License-Identifier: Apache-2.0

// Package bandwidth is the contract that admission and enforcement share: the rate type with its one canonical
// text, and every name that users type.
package bandwidth

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Rate is an egress limit in bits per second. The zero Rate means "no limit"; every other valid Rate lies between
// MinRate and MaxRate.
type Rate int64

// The bounds are those that the kubelet and containerd apply to AnnotationEgress.
const (
	BitPerSecond  Rate = 1
	Kilobit            = 1000 * BitPerSecond
	Megabit            = 1000 * Kilobit
	Gigabit            = 1000 * Megabit
	Terabit            = 1000 * Gigabit
	Petabit            = 1000 * Terabit
	MinRate            = Kilobit
	MaxRate            = Petabit
	maxTextLength      = 64
)

// Example is a text that every error message offers as one that works.
const Example = "10M"

// Reasons why a text is not a rate. Parse wraps them in a *ParseError.
var (
	ErrSyntax     = errors.New("is not a Kubernetes quantity")
	ErrNegative   = errors.New("is negative")
	ErrFractional = errors.New("is not a whole number of bits per second")
	ErrTooSmall   = errors.New("is below the smallest limit, 1k (1000 bits per second)")
	ErrTooLarge   = errors.New("is above the largest limit, 1P (10^15 bits per second)")
)

// ParseError tells what was wrong with a rate's text, in words for the person who typed it.
type ParseError struct {
	Text   string // what was typed, whole
	Reason error  // one of the Err values of this package
	Hint   string // what was probably meant; may be empty
}

func (e *ParseError) Error() string {
	msg := fmt.Sprintf("%q %v", shorten(e.Text), e.Reason)
	if e.Hint != "" {
		msg += " (" + e.Hint + ")"
	}
	return msg + fmt.Sprintf("; write bits per second like %q, %q or %q", Example, "1500k", "2G")
}

func (e *ParseError) Unwrap() error { return e.Reason }

// Parse reads a rate in any spelling that Kubernetes accepts for a quantity (decimal and binary suffixes,
// fractions, exponents, a plus sign), as long as its exact value is a whole number of bits per second between
// MinRate and MaxRate. Nothing is rounded. The error is a *ParseError.
func Parse(text string) (Rate, error) {
	rate, reason := parse(text)
	if reason != nil {
		return 0, &ParseError{Text: text, Reason: reason, Hint: hint(text, reason)}
	}
	return rate, nil
}

// parse returns one of the Err values, bare.
func parse(text string) (Rate, error) {
	if rate, ok := plain(text); ok {
		return rate, nil
	}
	return parseExact(text)
}

// parseExact reads every spelling.
func parseExact(text string) (Rate, error) {
	if len(text) > maxTextLength {
		return 0, ErrSyntax
	}
	q, ok := splitQuantity(text)
	if !ok {
		return 0, ErrSyntax
	}
	value, ok := q.exact()
	switch {
	case !ok:
		return 0, ErrSyntax
	case value.Sign() < 0:
		return 0, ErrNegative
	case value.Cmp(ratOf(MinRate)) < 0:
		return 0, ErrTooSmall
	case value.Cmp(ratOf(MaxRate)) > 0:
		return 0, ErrTooLarge
	case !value.IsInt():
		return 0, ErrFractional
	}
	return Rate(value.Num().Int64()), nil
}

// plain reads what nearly all rates look like, canonical ones among them: digits and at most one decimal suffix. It is
// not ok for anything else, nor outside the bounds. Admission reads several rates for each pod.
func plain(text string) (Rate, bool) {
	const digits = 16 // of MaxRate in full
	unit := BitPerSecond
	if n := len(text); n > 0 {
		switch text[n-1] {
		case 'k':
			unit = Kilobit
		case 'M':
			unit = Megabit
		case 'G':
			unit = Gigabit
		case 'T':
			unit = Terabit
		case 'P':
			unit = Petabit
		}
		if unit != BitPerSecond {
			text = text[:n-1]
		}
	}
	if len(text) == 0 || len(text) > digits {
		return 0, false
	}
	var n Rate
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return 0, false
		}
		n = n*10 + Rate(text[i]-'0')
	}
	if n > MaxRate/unit || n*unit < MinRate {
		return 0, false
	}
	return n * unit, true
}

// MustParse is Parse for constants in tests and examples; it panics on an error.
func MustParse(text string) Rate {
	r, err := Parse(text)
	if err != nil {
		panic(err)
	}
	return r
}

// Valid reports whether r can stand in AnnotationEgress.
func (r Rate) Valid() bool { return r >= MinRate && r <= MaxRate }

// BitsPerSecond is the rate as a plain number.
func (r Rate) BitsPerSecond() int64 { return int64(r) }

// String is the canonical text: the shortest exact decimal-SI form, such as "10M" or "1500k". For a valid rate
// Parse(r.String()) == r.
func (r Rate) String() string {
	n, suffix := int64(r), ""
	for _, s := range []string{"k", "M", "G", "T", "P"} {
		if n == 0 || n%1000 != 0 {
			break
		}
		n, suffix = n/1000, s
	}
	return strconv.FormatInt(n, 10) + suffix
}

// quantity is the text of a Kubernetes quantity, taken apart.
type quantity struct {
	number string // digits with at most one point, an optional sign before them
	base   int64  // 2 or 10
	exp    int    // the suffix stands for base^exp
}

var suffixes = map[string]struct {
	base int64
	exp  int
}{
	"n": {10, -9}, "u": {10, -6}, "m": {10, -3}, "": {10, 0},
	"k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
	"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
}

// maxExponent keeps hostile exponents from costing memory; nothing beyond it can be a rate of at most 64 characters.
const maxExponent = 100

// splitQuantity follows the grammar of apimachinery's resource.Quantity.
func splitQuantity(text string) (quantity, bool) {
	end := 0
	if end < len(text) && (text[end] == '+' || text[end] == '-') {
		end++
	}
	digits, point := 0, false
	for ; end < len(text); end++ {
		c := text[end]
		if c == '.' && !point {
			point = true
			continue
		}
		if c < '0' || c > '9' {
			break
		}
		digits++
	}
	if digits == 0 {
		return quantity{}, false
	}
	q := quantity{number: text[:end]}
	suffix := text[end:]
	if s, ok := suffixes[suffix]; ok {
		q.base, q.exp = s.base, s.exp
		return q, true
	}
	if suffix[0] != 'e' && suffix[0] != 'E' {
		return quantity{}, false
	}
	exp, err := strconv.Atoi(suffix[1:])
	if err != nil || exp > maxExponent || exp < -maxExponent {
		return quantity{}, false
	}
	q.base, q.exp = 10, exp
	return q, true
}

func (q quantity) exact() (*big.Rat, bool) {
	// A trailing or leading point is fine for Kubernetes, and for SetString too.
	value, ok := new(big.Rat).SetString(q.number)
	if !ok {
		return nil, false
	}
	exp := q.exp
	if exp < 0 {
		exp = -exp
	}
	scale := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(q.base), big.NewInt(int64(exp)), nil))
	if q.exp < 0 {
		return value.Quo(value, scale), true
	}
	return value.Mul(value, scale), true
}

func ratOf(r Rate) *big.Rat { return new(big.Rat).SetInt64(int64(r)) }

// hint guesses what was meant. The commonest slip, "10m" for ten megabits, is ten millibits.
func hint(text string, reason error) string {
	if errors.Is(reason, ErrTooSmall) && strings.HasSuffix(text, "m") {
		guess := strings.TrimSuffix(text, "m") + "M"
		if _, err := parse(guess); err == nil {
			return fmt.Sprintf("%q means thousandths of a bit; for megabits write %q", "m", guess)
		}
	}
	if !errors.Is(reason, ErrSyntax) {
		return ""
	}
	number := strings.TrimRight(strings.TrimSpace(text), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/ ")
	unit := strings.ToLower(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text), number)))
	if number == "" || unit == "" {
		return ""
	}
	for _, s := range []struct{ prefix, suffix string }{{"k", "k"}, {"m", "M"}, {"g", "G"}, {"t", "T"}} {
		if !strings.HasPrefix(unit, s.prefix) {
			continue
		}
		if _, err := parse(number + s.suffix); err == nil {
			return fmt.Sprintf("did you mean %q?", number+s.suffix)
		}
	}
	return ""
}

func shorten(text string) string {
	if len(text) <= maxTextLength {
		return text
	}
	return text[:maxTextLength] + "…"
}
