"""RabbitMQ as a transport, by AMQP 0-9-1."""
