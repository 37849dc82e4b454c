// Opens Swagger UI on the service's own OpenAPI document.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
