"""Every bound of the protocol, in one place: unit in the name, precedent in the comment.

A bound is checked *before* the bytes that it bounds are read, copied or allocated.
"""

from typing import Final

PROTOCOL_MAJOR: Final = 1
PROTOCOL_MINOR: Final = 1

# AWS IoT Core, the tightest large broker, takes 128 KB a packet with topic and header.
PACKET_BYTES_MAX_DEFAULT: Final = 131_072
# Below this a resume bitmap or an offer with all its metrics does not fit.
PACKET_BYTES_MIN: Final = 4_096
# What topic, MQTT header, frame header and message envelope may take of a packet beside chunk data.
PACKET_OVERHEAD_BYTES: Final = 1_024
# AWS IoT Core allows seven slashes; we stay at seven levels in all.
TOPIC_LEVELS_MAX: Final = 7
TOPIC_BYTES_MAX: Final = 256

# Anything but a chunk is a small record; a certificate of a few KB is the largest.
MESSAGE_BYTES_MAX: Final = 65_536
# Names: federations, devices, tensors, classes. 64 is the DNS label's bound plus one.
NAME_CHARS_MAX: Final = 64
REASON_CHARS_MAX: Final = 200
METRICS_MAX: Final = 32
CODECS_MAX: Final = 16

# What is left of the smallest packet; a device that asks for less makes a flood of its model.
CHUNK_BYTES_MIN: Final = PACKET_BYTES_MIN - PACKET_OVERHEAD_BYTES
# HiveMQ's receive maximum is 10: a window of 8 never stalls on it.
CHUNKS_IN_FLIGHT_MAX: Final = 8
# 64 Ki chunks of 120 KB are 7.8 GB; the bitmap is 8 KiB.
CHUNKS_PER_TRANSFER_MAX: Final = 65_536
# 256 MB: the largest MQTT payload, and more than any small device trains.
TRANSFER_BYTES_MAX: Final = 268_435_456

# A model: gateways are small; 64 M parameters is 256 MB in float32.
TENSORS_MAX: Final = 4_096
TENSOR_RANK_MAX: Final = 8
MODEL_PARAMETERS_MAX: Final = 67_108_864
# The words of a description: TENSORS_MAX specs, said twice where there is an artefact, are 3 MB.
DESCRIPTION_WORDS_BYTES_MAX: Final = 4_194_304
# Versions behind which a device is sent a snapshot instead of a chain of deltas.
DELTAS_PER_BUNDLE_MAX: Final = 64

# The sum of a round: |value| * weight * updates has to fit int64 beside its fraction bits.
UPDATE_VALUE_ABS_MAX: Final = 4_096.0
WEIGHT_MAX: Final = 1_048_576
UPDATES_PER_ROUND_MAX: Final = 131_072

# Transfers that one coordinator reassembles at once, and one device's share of them.
PARTIAL_BYTES_MAX: Final = 1_073_741_824
PARTIALS_PER_DEVICE_MAX: Final = 2

# Times. A lease is what a device promises at most; deadlines are a round's.
LEASE_S_MAX: Final = 604_800.0
DEADLINE_S_MAX: Final = 604_800.0
COME_BACK_S_MAX: Final = 604_800.0
EPOCHS_MAX: Final = 10_000
BATCH_MAX: Final = 1_048_576
