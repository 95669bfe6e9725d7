"""Has network cards compute UDP checksums, or the senders do it themselves.

tx_checksums.py on|off INTERFACE...

Between virtual cards nobody computes what is left to a card, so a program that sees packets before
the kernel's stack does cannot repair such a checksum. Real cards send whole ones. This is what
ethtool -K INTERFACE tx does, for machines without it.
"""

import array
import fcntl
import socket
import struct
import sys

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17

setting = {"on": 1, "off": 0}[sys.argv[1]]
anything = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for interface in sys.argv[2:]:
    command = array.array("B", struct.pack("II", ETHTOOL_STXCSUM, setting))
    request = struct.pack("16sP", interface.encode(), command.buffer_info()[0])
    fcntl.ioctl(anything, SIOCETHTOOL, request)
