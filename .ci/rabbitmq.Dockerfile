# As the official image: without plugins. Enabling one takes as long as a third of the start of the
# server, which tests start and restart a dozen times.
FROM eventmesh-test/rabbitmq:4.0
RUN printf '%s\n' '#!/bin/sh' \
    'printf "loopback_users = none\ndefault_user = %s\ndefault_pass = %s\n" "$RABBITMQ_DEFAULT_USER" "$RABBITMQ_DEFAULT_PASS" >/etc/rabbitmq/rabbitmq.conf' \
    'exec rabbitmq-server' >/usr/local/bin/rabbitmq-start
