# As the official image: without plugins. Enabling one takes as long as a third of the start of the
# server, which tests start and restart a dozen times.
FROM eventmesh-test/rabbitmq:4.0
RUN printf '%s\n' '#!/bin/sh' \
    'printf "loopback_users = none\ndefault_user = %s\ndefault_pass = %s\n" "$RABBITMQ_DEFAULT_USER" "$RABBITMQ_DEFAULT_PASS" >/etc/rabbitmq/rabbitmq.conf' \
    'exec rabbitmq-server' >/usr/local/bin/rabbitmq-start
# Each quorum queue of a test stays until the end, and looks after itself every five seconds: a
# thousand of them take a twentieth of a processor. No test waits for that, so it is once a minute.
ENV RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-rabbit quorum_tick_interval 60000"
