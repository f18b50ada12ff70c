// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// A screen of its own without a cursor, and lines that are cut rather than wrapped; and the way back.
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	// Each line is erased before it is written: after one as long as the window the cursor is still on its last
	// character, and erasing then would take that.
	home, eraseLine, eraseBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	// glance is how often the keyboard and the window's size are looked at.
	glance = 100 * time.Millisecond
)

// Terminal is a Display in place: one frame over the other. Close gives the terminal back as it was.
type Terminal struct {
	in, out *os.File
	screen  Screen
	before  *term.State // of in; nil where it is no terminal
	last    *Frame
	width   int
	height  int
}

var _ Display = (*Terminal)(nil)

// OpenTerminal takes the terminal out over; in, where it is one too, is asked for keys: q and Ctrl-C end top.
func OpenTerminal(in, out *os.File, screen Screen) (*Terminal, error) {
	t := &Terminal{in: in, out: out, screen: screen}
	if term.IsTerminal(int(in.Fd())) {
		state, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, fmt.Errorf("set up terminal: %w", err)
		}
		t.before = state
	}
	if _, err := out.WriteString(enterScreen); err != nil {
		t.restore()
		return nil, fmt.Errorf("set up terminal: %w", err)
	}
	return t, nil
}

// Close gives the terminal back.
func (t *Terminal) Close() error {
	_, err := t.out.WriteString(leaveScreen)
	t.restore()
	return err
}

func (t *Terminal) restore() {
	if t.before != nil {
		// Nothing is left to be done where this fails: the terminal is gone.
		_ = term.Restore(int(t.in.Fd()), t.before)
	}
}

// Show implements Display.
func (t *Terminal) Show(f Frame) error {
	t.last = &f
	t.width, t.height = t.size()
	screen := t.screen
	screen.Width, screen.Height = t.width, t.height
	_, err := t.out.WriteString(inPlace(f.Text(screen), t.height))
	return err
}

// inPlace turns lines into what writes them over those of the last frame. The window's last line is not ended: that
// would scroll.
func inPlace(text string, height int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	rest := ""
	if len(lines) < height {
		rest = "\r\n" + eraseBelow
	}
	return home + eraseLine + strings.Join(lines, "\r\n"+eraseLine) + rest
}

// size of the window; where it tells none, what every terminal has.
func (t *Terminal) size() (width, height int) {
	width, height, err := term.GetSize(int(t.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// Wait implements Display.
func (t *Terminal) Wait(ctx context.Context, d time.Duration) bool {
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if left <= 0 {
			return ctx.Err() != nil
		}
		if t.wantsOut(ctx, min(left, glance)) {
			return true
		}
		if width, height := t.size(); t.last != nil && (width != t.width || height != t.height) {
			if err := t.Show(*t.last); err != nil {
				return true
			}
		}
	}
}

// wantsOut waits for a key, or for so long.
func (t *Terminal) wantsOut(ctx context.Context, d time.Duration) bool {
	if t.before == nil {
		select {
		case <-ctx.Done():
			return true
		case <-time.After(d):
			return false
		}
	}
	fds := []unix.PollFd{{Fd: int32(t.in.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(max(d.Milliseconds(), 1)))
	if ctx.Err() != nil {
		return true
	}
	if n <= 0 || err != nil { // an interrupted wait is a short one
		return false
	}
	var keys [64]byte
	read, err := t.in.Read(keys[:])
	return err != nil || ends(keys[:read])
}

// ends: q, Ctrl-C and Ctrl-D.
func ends(keys []byte) bool {
	return strings.ContainsAny(string(keys), "qQ\x03\x04")
}
