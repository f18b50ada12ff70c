// SPDX-License-Identifier: Apache-2.0

package report

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// clean makes what strangers wrote (names of pods and devices, and whatever reasons quote) harmless for terminals and
// tables: what is no visible character becomes a question mark.
func clean(text string) string {
	return mapRunes(text, unicode.IsPrint)
}

// narrow is clean for places where every character must be one cell wide.
func narrow(text string) string {
	return mapRunes(text, func(r rune) bool { return unicode.IsPrint(r) && (r < 0x300 || r == '…') })
}

func mapRunes(text string, good func(rune) bool) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !good(r) {
			return '?'
		}
		return r
	}, text)
}

// fit cuts a narrow text to a width.
func fit(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	if width <= 0 {
		return ""
	}
	return string([]rune(text)[:width-1]) + "…"
}
