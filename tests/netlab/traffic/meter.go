// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ring: frames of 256 bytes hold the ring's own headers and the packet's first 170 or so, enough for all headers.
const (
	frameSize  = 256
	blockSize  = 1 << 16
	blockCount = 512
	frameCount = blockCount * blockSize / frameSize
	vnetHeader = 10 // struct virtio_net_hdr: gso_size is its third 16-bit field
	ethPAll    = 0x0300
)

// ErrMeterDropped says that the meter missed packets, so that its sums are too low.
var ErrMeterDropped = errors.New("the meter missed packets")

// Meter records every packet that a device receives, from Start to Stop, by a packet socket with a memory-mapped ring.
// It sees TSO packets whole and counts what their segments would be on a wire.
type Meter struct {
	fd      int
	ring    []byte
	started time.Time
	stop    atomic.Bool
	done    chan struct{}
	packets []Packet
}

// StartMeter begins to record what the device receives. Every Meter must be stopped.
func StartMeter(in Runner, device string) (*Meter, error) {
	m := &Meter{fd: -1, done: make(chan struct{})}
	if err := in.Do(func() error { return m.open(device) }); err != nil {
		return nil, errors.Join(fmt.Errorf("start meter on %s: %w", device, err), m.close())
	}
	m.started = time.Now()
	go m.run()
	return m, nil
}

func (m *Meter) open(device string) (err error) {
	// No protocol yet: nothing arrives before the ring is there.
	m.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(m.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return fmt.Errorf("ring version: %w", err)
	}
	if err := unix.SetsockoptInt(m.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("virtio header: %w", err)
	}
	request := unix.TpacketReq{Block_size: blockSize, Block_nr: blockCount, Frame_size: frameSize, Frame_nr: frameCount}
	if err := unix.SetsockoptTpacketReq(m.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	m.ring, err = unix.Mmap(m.fd, 0, blockSize*blockCount, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map ring: %w", err)
	}
	index, err := deviceIndex(m.fd, device)
	if err != nil {
		return err
	}
	if err := unix.Bind(m.fd, &unix.SockaddrLinklayer{Protocol: ethPAll, Ifindex: index}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

func deviceIndex(fd int, device string) (int, error) {
	request, err := unix.NewIfreq(device)
	if err != nil {
		return 0, fmt.Errorf("device %q: %w", device, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, fmt.Errorf("device %q: %w", device, err)
	}
	return int(request.Uint32()), nil
}

// run moves frames out of the ring until Stop, and what is in it then.
func (m *Meter) run() {
	defer close(m.done)
	poll := []unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}
	for frame := 0; ; {
		offset := frame * frameSize
		status := (*uint32)(unsafe.Pointer(&m.ring[offset]))
		if atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
			if m.stop.Load() {
				return
			}
			_, _ = unix.Poll(poll, 20) // milliseconds
			continue
		}
		m.take(m.ring[offset : offset+frameSize])
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
		frame = (frame + 1) % frameCount
	}
}

// take records one frame: struct tpacket2_hdr, struct sockaddr_ll, the virtio header and the packet's beginning.
func (m *Meter) take(frame []byte) {
	header := (*unix.Tpacket2Hdr)(unsafe.Pointer(&frame[0]))
	address := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&frame[unix.SizeofTpacket2Hdr]))
	if address.Pkttype == unix.PACKET_OUTGOING {
		return
	}
	mac := int(header.Mac)
	data := frame[mac:min(mac+int(header.Snaplen), len(frame))]
	segment := int(*(*uint16)(unsafe.Pointer(&frame[mac-vnetHeader+4])))
	packet := dissect(data)
	packet.At = time.Unix(int64(header.Sec), int64(header.Nsec)).Sub(m.started)
	length := int(header.Len)
	packet.Segments = segments(length, packet.headers, segment)
	packet.Wire = length + (packet.Segments-1)*packet.headers
	m.packets = append(m.packets, packet)
}

// segments is how many packets a device makes of one; segment is the payload of each, 0 for a packet that stays whole.
func segments(length, headers, segment int) int {
	if segment == 0 || length <= headers+segment {
		return 1
	}
	return (length - headers + segment - 1) / segment
}

// Stop ends the recording and returns it. The error wraps ErrMeterDropped where the recording is not complete.
func (m *Meter) Stop() (Capture, error) {
	// What has been delivered is in the ring already: the kernel writes it before the receiver sees the packet.
	m.stop.Store(true)
	<-m.done
	capture := Capture{Started: m.started, Elapsed: time.Since(m.started), Packets: m.packets}
	stats, err := unix.GetsockoptTpacketStats(m.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("%w: %d of %d", ErrMeterDropped, stats.Drops, stats.Packets)
	}
	return capture, errors.Join(err, m.close())
}

func (m *Meter) close() error {
	var errs []error
	if m.ring != nil {
		errs = append(errs, unix.Munmap(m.ring))
		m.ring = nil
	}
	if m.fd >= 0 {
		errs = append(errs, unix.Close(m.fd))
		m.fd = -1
	}
	return errors.Join(errs...)
}
